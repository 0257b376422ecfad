"""Forward Kullback-Leibler divergence."""

from torch import Tensor

from kd_losses.divergences.distribution import DistributionLoss


class ForwardKLLoss(DistributionLoss):
    """``KL(p‖q) = Σ p·(log p − log q)``, teacher p, student q; 0 when they are equal.

    Source: Hinton et al., https://arxiv.org/abs/1503.02531 (there without the teacher's entropy).
    """

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return KL(p‖q) of every token."""
        return kl(log_p, log_q)

    def divergence_and_slope(
        self, log_p: Tensor, log_q: Tensor, weight: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return KL(p‖q) and its slope −p."""
        return kl_and_slope(log_p, log_q, weight)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return ``Σ p·(log p − log q)`` over the last dimension."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def kl_and_slope(log_p: Tensor, log_q: Tensor, weight: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return `kl` and ``weight`` times its slope −p w.r.t. log q; overwrites ``log_p``."""
    p = log_p.exp()
    return log_p.sub_(log_q).mul_(p).sum(-1), p.mul_(-weight)
