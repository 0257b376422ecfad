"""Weighted sum of forward and reverse Kullback-Leibler divergence."""

import torch
from torch import Tensor

from kd_losses.divergences.distribution import DistributionLoss
from kd_losses.functional import require


class SymmetricKLLoss(DistributionLoss):
    """``(1 − λ)·KL(p‖q) + λ·KL(q‖p)``, teacher p, student q.

    Args:
        lambda_weight: λ in [0, 1].
        temperature: both sides' logits are divided by it.
        ignore_index: label of the positions that do not count.

    Raises:
        ValueError: if λ or the temperature is out of range.

    Source: Jeffreys' divergence, weighted.
    """

    def __init__(
        self, lambda_weight: float = 0.9, temperature: float = 1.0, ignore_index: int = -100
    ) -> None:
        super().__init__(temperature=temperature, ignore_index=ignore_index)
        require(0 <= lambda_weight <= 1, "lambda_weight", lambda_weight, "within [0, 1]")
        self.lambda_weight = lambda_weight

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return the weighted sum for every token."""
        weight = (1 - self.lambda_weight) * log_p.exp() - self.lambda_weight * log_q.exp()
        return (weight * (log_p - log_q)).sum(-1)

    def divergence_and_slope(
        self, log_p: Tensor, log_q: Tensor, weight: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted sum and its slope −(1 − λ)·p − λ·q·log(p/q)."""
        minus_p = log_p.exp().mul_(self.lambda_weight - 1)
        log_ratio = log_p.sub_(log_q)
        forward = torch.linalg.vecdot(minus_p, log_ratio)
        reverse = log_q.exp().mul_(-self.lambda_weight).mul_(log_ratio)
        return reverse.sum(-1) - forward, reverse.add_(minus_p).mul_(weight)
