"""Skewed Kullback-Leibler divergences: the second argument is mixed with the first.

Source: DistiLLM, https://arxiv.org/abs/2402.03898.
"""

import torch
from torch import Tensor

from kd_losses.divergences.distribution import DistributionLoss
from kd_losses.functional import log_mixture, require


class _SkewLoss(DistributionLoss):
    """What both directions share: α, the share of the first argument in the mixture."""

    def __init__(
        self, alpha: float = 0.1, temperature: float = 1.0, ignore_index: int = -100
    ) -> None:
        super().__init__(temperature=temperature, ignore_index=ignore_index)
        require(0 < alpha < 1, "alpha", alpha, "within (0, 1)")
        self.alpha = alpha


class SkewForwardKLLoss(_SkewLoss):
    """``KL(p‖m)`` with ``m = α·p + (1 − α)·q``, teacher p, student q; tends to KL(p‖q) for α → 0.

    Args:
        alpha: α in (0, 1).
        temperature: both sides' logits are divided by it.
        ignore_index: label of the positions that do not count.

    Raises:
        ValueError: if α or the temperature is out of range.

    Source: DistiLLM, https://arxiv.org/abs/2402.03898.
    """

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return KL(p‖m) of every token."""
        p = log_p.exp()
        return (p * (log_p - log_mixture(self.alpha, log_q.exp(), p))).sum(-1)

    def divergence_and_slope(
        self, log_p: Tensor, log_q: Tensor, weight: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return KL(p‖m) and its slope −(1 − α)·q·p/m."""
        p, q = log_p.exp(), log_q.exp()
        log_ratio = log_p.sub_(log_mixture(self.alpha, q, p))
        loss = p.mul_(log_ratio).sum(-1)
        return loss, q.mul_(log_ratio.exp_()).mul_((self.alpha - 1) * weight)


class SkewReverseKLLoss(_SkewLoss):
    """``KL(q‖m)`` with ``m = (1 − α)·p + α·q``, teacher p, student q; tends to KL(q‖p) for α → 0.

    Args:
        alpha: α in (0, 1).
        temperature: both sides' logits are divided by it.
        ignore_index: label of the positions that do not count.

    Raises:
        ValueError: if α or the temperature is out of range.

    Source: DistiLLM, https://arxiv.org/abs/2402.03898.
    """

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return KL(q‖m) of every token."""
        q = log_q.exp()
        return (q * (log_q - log_mixture(self.alpha, log_p.exp(), q))).sum(-1)

    def divergence_and_slope(
        self, log_p: Tensor, log_q: Tensor, weight: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return KL(q‖m) and its slope q·(log(q/m) − α·q/m)."""
        q = log_q.exp()
        log_ratio = torch.sub(log_q, log_mixture(self.alpha, log_p.exp_(), q), out=log_p)
        loss = torch.linalg.vecdot(q, log_ratio)
        slope = q.mul_(log_ratio.sub_(log_ratio.exp(), alpha=self.alpha))
        return loss, slope.mul_(weight)
