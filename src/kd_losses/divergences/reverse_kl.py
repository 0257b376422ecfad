"""Reverse Kullback-Leibler divergence."""

from torch import Tensor

from kd_losses.divergences.distribution import DistributionLoss


class ReverseKLLoss(DistributionLoss):
    """``KL(q‖p) = Σ q·(log q − log p)``, teacher p, student q: the student seeks a mode of p.

    Source: MiniLLM, https://arxiv.org/abs/2306.08543.
    """

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return KL(q‖p) of every token."""
        return (log_q.exp() * (log_q - log_p)).sum(-1)

    def divergence_and_slope(
        self, log_p: Tensor, log_q: Tensor, weight: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return KL(q‖p) and its slope q·log(q/p)."""
        minus_slope = log_q.exp().mul_(log_p.sub_(log_q))
        return -minus_slope.sum(-1), minus_slope.mul_(-weight)
