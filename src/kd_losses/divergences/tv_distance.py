"""Total variation distance."""

from torch import Tensor

from kd_losses.divergences.distribution import DistributionLoss


class TVDistanceLoss(DistributionLoss):
    """``½·Σ|p − q|``, teacher p, student q; at most 1.

    Source: f-divergence KD, https://arxiv.org/abs/2307.15190.
    """

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return the distance for every token."""
        return (log_q.exp() - log_p.exp()).abs().sum(-1) / 2

    def divergence_and_slope(
        self, log_p: Tensor, log_q: Tensor, weight: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the distance and its slope ½·q·sign(q − p)."""
        q = log_q.exp()
        difference = log_p.exp_().sub_(q).neg_()
        loss = difference.abs().sum(-1).div_(2)
        return loss, q.mul_(difference.sign_()).mul_(weight / 2)
