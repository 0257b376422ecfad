"""Universal logit distillation: between models whose vocabularies have nothing in common."""

import torch.nn.functional as F
from torch import Tensor

from kd_losses.divergences.distribution import DistributionLoss
from kd_losses.reads import WHOLE, Reads


class ULDLoss(DistributionLoss):
    """``Σ_i |p_(i) − q_(i)|``, p_(i) and q_(i) the i-th largest probability; at most 2.

    It compares how certain teacher and student are, not of what: the Wasserstein distance where
    every token is equally far from every other. The smaller vocabulary is filled up with
    probabilities of 0. Sorting makes it slower than the other divergences.

    Source: ULD, https://arxiv.org/abs/2402.12030.
    """

    shares_vocabulary = False

    @property
    def reads(self) -> Reads:
        """Every probability: none of those that it sorts may stand for many."""
        return WHOLE

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return the distance of every token; ``log_p`` and ``log_q`` may differ in width."""
        p, q = (x.exp().sort(dim=-1, descending=True).values for x in (log_p, log_q))
        width = max(p.shape[-1], q.shape[-1])
        p, q = (F.pad(x, (0, width - x.shape[-1])) for x in (p, q))
        return (p - q).abs().sum(-1)
