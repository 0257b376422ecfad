"""Losses and logit gradient of one tile: a block of rows small enough to stay in cache.

Shape suffixes: R rows of the tile, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kd_losses.divergences.base import KDLoss
from kd_losses.divergences.distribution import DistributionLoss, log_softmax_backward_
from kd_losses.functional import at_target


@dataclass
class Objective:
    """``ce_weight · Σ CE + kd_weight · Σ divergence`` over the rows of a tile.

    The methods take student logits ``[R, V]``, teacher logits or ``None`` for no divergence, labels
    ``[R]``, and whether the rows count for the cross-entropy.
    """

    kd_loss: KDLoss
    ce_weight: float
    kd_weight: float

    def values(
        self, student_RV: Tensor, teacher_RV: Tensor | None, labels: Tensor, with_ce: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the sums (ce, kd)."""
        ce = kd = student_RV.new_zeros(())
        if with_ce:
            ce = _nll(torch.log_softmax(student_RV, dim=-1), labels)
        if teacher_RV is not None:
            kd = self.kd_loss.per_token(student_RV, teacher_RV, labels).sum()
        return ce, kd

    def values_and_grad_(
        self, student_RV: Tensor, teacher_RV: Tensor | None, labels: Tensor, with_ce: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sums (ce, kd) and the weighted gradient ``[R, V]``; overwrites the logits."""
        kd_loss = self.kd_loss
        if (
            with_ce
            and teacher_RV is not None
            and isinstance(kd_loss, DistributionLoss)
            and kd_loss.uses_plain_log_probs
        ):
            # Both are functions of the same log q, so one softmax and its backward serve both.
            log_p, log_q = teacher_RV.log_softmax(-1), student_RV.log_softmax(-1)
            ce = _nll(log_q, labels)
            loss, slope = kd_loss.divergence_and_slope(log_p, log_q, self.kd_weight)
            _add_at_labels_(slope, labels, -self.ce_weight)
            return ce, loss.sum(), log_softmax_backward_(slope, log_q, out=student_RV)

        ce = kd = student_RV.new_zeros(())
        q = None
        if with_ce:
            ce, q = _nll_and_probs(student_RV, labels)
        if teacher_RV is not None:
            loss, grad = kd_loss.per_token_and_grad(student_RV, teacher_RV, labels, self.kd_weight)
            kd = loss.sum()
            grad = grad if q is None else grad.add_(q, alpha=self.ce_weight)
        else:
            grad = student_RV.zero_() if q is None else q.mul_(self.ce_weight)
        return ce, kd, _add_at_labels_(grad, labels, -self.ce_weight) if with_ce else grad


def _nll_and_probs(student_RV: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy, and the student's probabilities: its gradient but for −1."""
    q_RV = torch.softmax(student_RV, dim=-1)
    # The largest logit and the largest probability, at least 1/V, give the logsumexp without a pass
    # for the exponential of log q.
    logsumexp = student_RV.amax(-1) - q_RV.amax(-1).log()
    return (logsumexp - at_target(student_RV, labels)).sum(), q_RV


def _nll(log_q_RV: Tensor, labels: Tensor) -> Tensor:
    return -at_target(log_q_RV, labels).sum()


def _add_at_labels_(x_RV: Tensor, labels: Tensor, value: float) -> Tensor:
    return x_RV.scatter_(-1, labels.unsqueeze(-1), value, reduce="add")
