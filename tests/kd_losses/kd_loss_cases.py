"""One row per divergence: how to build it, its value written from the paper, what holds for it.

The oracles take the logits of one token as float64 arrays and work on plain probabilities.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from math import log

import numpy as np
import pytest

import kd_losses
from kd_losses import KDLoss


@dataclass
class Case:
    """A divergence under test.

    Attributes:
        name: its class in `kd_losses`.
        oracle: value for one token: (teacher logits, student logits, label or None, temperature).
        parameters: arguments other than the temperature; small enough for a tiny vocabulary.
        takes_temperature: whether the class has that argument.
        zero_when_equal: whether loss(p, p) = 0, which also makes it non-negative.
        bound: largest possible value.
    """

    name: str
    oracle: Callable[[np.ndarray, np.ndarray, int | None, float], float]
    parameters: dict[str, float]
    takes_temperature: bool = True
    zero_when_equal: bool = True
    bound: float = float("inf")

    def make(self, temperature: float = 1.0, **more: float) -> KDLoss:
        parameters = self.parameters | more
        if self.takes_temperature:
            parameters["temperature"] = temperature
        return getattr(kd_losses, self.name)(**parameters)

    @property
    def id(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.parameters.items())])


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def kl(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sum(a * np.log(a / b)))


def forward_kl(t, s, y, T):
    return kl(softmax(t / T), softmax(s / T))


def reverse_kl(t, s, y, T):
    return kl(softmax(s / T), softmax(t / T))


def symmetric_kl(weight):
    return lambda *x: (1 - weight) * forward_kl(*x) + weight * reverse_kl(*x)


def js_distance(weight):
    def value(t, s, y, T):
        p, q = softmax(t / T), softmax(s / T)
        m = (1 - weight) * p + weight * q
        return weight * kl(q, m) + (1 - weight) * kl(p, m)

    return value


def tv_distance(t, s, y, T):
    p, q = softmax(t / T), softmax(s / T)
    return float(np.maximum(p - q, 0).sum())


def skew_forward(alpha):
    def value(t, s, y, T):
        p, q = softmax(t / T), softmax(s / T)
        return kl(p, alpha * p + (1 - alpha) * q)

    return value


def skew_reverse(alpha):
    def value(t, s, y, T):
        p, q = softmax(t / T), softmax(s / T)
        return kl(q, (1 - alpha) * p + alpha * q)

    return value


def alpha_beta(alpha, beta):
    def value(t, s, y, T):
        p, q, both = softmax(t / T), softmax(s / T), alpha + beta
        mean = alpha / both * np.sum(p**both) + beta / both * np.sum(q**both)
        return (mean - np.sum(p**alpha * q**beta)) / (alpha * beta)

    return value


def topk_kl(k):
    def value(t, s, y, T):
        ids = np.argsort(t)[-k:]
        return forward_kl(t[ids], s[ids], y, T)

    return value


def bild(k):
    def led_by(leader, t, s, T):
        ids = sorted(range(len(leader)), key=lambda i: -leader[i])[:k]
        p = softmax(np.array([(t[i] - t[j]) / T for i, j in combinations(ids, 2)]))
        q = softmax(np.array([(s[i] - s[j]) / T for i, j in combinations(ids, 2)]))
        return kl(p, q)

    return lambda t, s, y, T: led_by(t, t, s, T) + led_by(s, t, s, T)


def dkd(alpha, beta, t_norm):
    def value(t, s, y, T):
        tau = t_norm * np.std(t, ddof=1)
        p, q = softmax(t / tau), softmax(s / (t_norm * np.std(s, ddof=1)))
        y = int(np.argmax(t)) if y is None else y
        target = kl(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]]))
        rest_p, rest_q = np.delete(p, y), np.delete(q, y)
        others = kl(rest_p / rest_p.sum(), rest_q / rest_q.sum())
        return tau**2 * (alpha * target + beta * others)

    return value


def nkd(gamma):
    def value(t, s, y, T):
        top = int(np.argmax(t))
        rest_p, rest_q = softmax(np.delete(t, top) / T), softmax(np.delete(s, top) / T)
        first = -softmax(t)[top] * np.log(softmax(s)[top])
        return first - gamma * float(np.sum(rest_p * np.log(rest_q)))

    return value


def norm_kd(t_norm):
    def value(t, s, y, T):
        tau_p, tau_q = t_norm * np.std(t, ddof=1), t_norm * np.std(s, ddof=1)
        return tau_p**2 * kl(softmax(t / tau_p), softmax(s / tau_q))

    return value


CASES = [
    Case("ForwardKLLoss", forward_kl, {}),
    Case("ReverseKLLoss", reverse_kl, {}),
    Case("SymmetricKLLoss", symmetric_kl(0.9), {}),
    Case("SymmetricKLLoss", symmetric_kl(0.3), {"lambda_weight": 0.3}),
    Case("JSDistanceLoss", js_distance(0.9), {}, bound=log(2)),
    Case("JSDistanceLoss", js_distance(0.5), {"lambda_weight": 0.5}, bound=log(2)),
    Case("TVDistanceLoss", tv_distance, {}, bound=1.0),
    Case("SkewForwardKLLoss", skew_forward(0.1), {}, bound=log(10)),
    Case("SkewReverseKLLoss", skew_reverse(0.1), {}, bound=log(10)),
    Case("AlphaBetaLoss", alpha_beta(0.2, 0.7), {}),
    Case("AlphaBetaLoss", alpha_beta(1.2, 0.5), {"alpha": 1.2, "beta": 0.5}),
    Case("TopKKLLoss", topk_kl(5), {"top_k": 5}),
    Case("BiLDLoss", bild(8), {}),
    Case("DKDLoss", dkd(0.5, 0.5, 2.0), {}, takes_temperature=False),
    Case(
        "DKDLoss",
        dkd(1.0, 0.2, 1.5),
        {"alpha": 1.0, "beta": 0.2, "t_norm": 1.5},
        takes_temperature=False,
    ),
    Case("NKDLoss", nkd(0.25), {}, zero_when_equal=False),
    Case("NormKDLoss", norm_kd(1.5), {}, takes_temperature=False),
]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
every_temperature = pytest.mark.parametrize("temperature", [1.0, 2.5])
