"""α-β divergence."""

import torch
from torch import Tensor

from kd_losses.divergences.distribution import DistributionLoss
from kd_losses.functional import require


class AlphaBetaLoss(DistributionLoss):
    """``Σ p^(α+β)/β/(α+β) + q^(α+β)/α/(α+β) − p^α·q^β/(α·β)``, teacher p, student q.

    Tends to KL(p‖q) for α = 1, β → 0 and to KL(q‖p) for α → 0, β = 1. A larger α weighs tokens by
    how far q is off there, a larger β by how confident q is.

    Args:
        alpha: α above 0.
        beta: β above 0.
        temperature: both sides' logits are divided by it.
        ignore_index: label of the positions that do not count.

    Raises:
        ValueError: if α, β or the temperature is not above 0.

    Source: ABKD, https://arxiv.org/abs/2505.04560.
    """

    def __init__(
        self,
        alpha: float = 0.2,
        beta: float = 0.7,
        temperature: float = 1.0,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(temperature=temperature, ignore_index=ignore_index)
        require(alpha > 0, "alpha", alpha, "above 0")
        require(beta > 0, "beta", beta, "above 0")
        self.alpha = alpha
        self.beta = beta

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return the divergence of every token."""
        a, b = self.alpha, self.beta
        # Summed alike, so that the three powers are equal to the last digit where p and q are.
        p_power, q_power = (a * log_p + b * log_p).exp(), (a * log_q + b * log_q).exp()
        mixed = (a * log_p + b * log_q).exp()
        # Both differences are small where p ≈ q; their terms on their own are not.
        terms = (p_power - mixed) / b + (q_power - mixed) / a
        return terms.sum(-1) / (a + b)

    def divergence_and_slope(
        self, log_p: Tensor, log_q: Tensor, weight: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the divergence and its slope (q^(α+β) − p^α·q^β)/α."""
        a, b = self.alpha, self.beta
        p_power, q_power = a * log_p, a * log_q
        mixed = torch.add(p_power, log_q, alpha=b).exp_()
        p_power.add_(log_p, alpha=b).exp_()
        q_power.add_(log_q, alpha=b).exp_()
        slope = q_power.sub_(mixed).div_(a)
        loss = (p_power.sub_(mixed).sum(-1) / b + slope.sum(-1)) / (a + b)
        return loss, slope.mul_(weight)
