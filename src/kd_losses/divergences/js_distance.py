"""Generalised Jensen-Shannon divergence."""

import torch
from torch import Tensor

from kd_losses.divergences.distribution import DistributionLoss
from kd_losses.functional import log_mixture, require


class JSDistanceLoss(DistributionLoss):
    """``λ·KL(q‖m) + (1 − λ)·KL(p‖m)`` with ``m = (1 − λ)·p + λ·q``, teacher p, student q.

    At most log 2 (λ = 0.5); tends to λ·KL(q‖p) for λ → 0 and to (1 − λ)·KL(p‖q) for λ → 1.

    Args:
        lambda_weight: λ in (0, 1); at 0 and 1 the divergence is identically 0.
        temperature: both sides' logits are divided by it.
        ignore_index: label of the positions that do not count.

    Raises:
        ValueError: if λ or the temperature is out of range.

    Source: f-divergence KD, https://arxiv.org/abs/2307.15190.
    """

    def __init__(
        self, lambda_weight: float = 0.9, temperature: float = 1.0, ignore_index: int = -100
    ) -> None:
        super().__init__(temperature=temperature, ignore_index=ignore_index)
        require(0 < lambda_weight < 1, "lambda_weight", lambda_weight, "within (0, 1)")
        self.lambda_weight = lambda_weight

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return the divergence of every token."""
        p, q = log_p.exp(), log_q.exp()
        log_m = log_mixture(self.lambda_weight, p, q)
        student = (q * (log_q - log_m)).sum(-1)
        teacher = (p * (log_p - log_m)).sum(-1)
        return torch.lerp(teacher, student, self.lambda_weight)

    def divergence_and_slope(
        self, log_p: Tensor, log_q: Tensor, weight: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the divergence and its slope λ·q·log(q/m)."""
        p, q = log_p.exp(), log_q.exp()
        log_m = log_mixture(self.lambda_weight, p, q)
        teacher = p.mul_(log_p.sub_(log_m)).sum(-1).mul_(1 - self.lambda_weight)
        minus_slope = q.mul_(log_m.sub_(log_q))
        loss = teacher.sub_(minus_slope.sum(-1), alpha=self.lambda_weight)
        return loss, minus_slope.mul_(-self.lambda_weight * weight)
