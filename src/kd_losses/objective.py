"""Losses and logit gradient of one tile: a block of rows small enough to stay in cache.

Shape suffixes: R rows of the tile, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kd_losses.base import KDLoss
from kd_losses.distribution import DistributionLoss, log_softmax_, log_softmax_backward


@dataclass
class Objective:
    """``ce_weight · Σ CE + kd_weight · Σ divergence`` over the rows of a tile."""

    kd_loss: KDLoss
    ce_weight: float
    kd_weight: float

    def values(
        self, student_RV: Tensor, teacher_RV: Tensor | None, labels: Tensor, with_ce: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the sums (ce, kd); kd is 0 without a teacher."""
        ce = kd = student_RV.new_zeros(())
        if with_ce:
            ce = _nll(torch.log_softmax(student_RV, dim=-1), labels)
        if teacher_RV is not None:
            kd = self.kd_loss.per_token(student_RV, teacher_RV, labels).sum()
        return ce, kd

    def values_and_grad(
        self, student_RV: Tensor, teacher_RV: Tensor | None, labels: Tensor, with_ce: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sums (ce, kd) and the weighted gradient ``[R, V]``; overwrites the logits."""
        zero = student_RV.new_zeros(())
        if teacher_RV is None:
            ce, grad = _ce_and_grad(student_RV, labels)
            return ce, zero, grad.mul_(self.ce_weight)
        if not with_ce:
            loss, grad = self.kd_loss.per_token_and_grad(student_RV, teacher_RV, labels)
            return zero, loss.sum(), grad.mul_(self.kd_weight)
        if isinstance(self.kd_loss, DistributionLoss) and self.kd_loss.temperature == 1:
            return self._shared_softmax(self.kd_loss, student_RV, teacher_RV, labels)
        ce, ce_grad = _ce_and_grad(student_RV.clone(), labels)
        loss, grad = self.kd_loss.per_token_and_grad(student_RV, teacher_RV, labels)
        return ce, loss.sum(), grad.mul_(self.kd_weight).add_(ce_grad, alpha=self.ce_weight)

    def _shared_softmax(
        self, kd_loss: DistributionLoss, student_RV: Tensor, teacher_RV: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Both parts are functions of the same log q, so one softmax and its backward serve both.
        log_p, log_q = log_softmax_(teacher_RV), log_softmax_(student_RV)
        ce = _nll(log_q, labels)
        loss, slope = kd_loss.divergence_and_slope(log_p, log_q)
        _add_at_labels(slope.mul_(self.kd_weight), labels, -self.ce_weight)
        return ce, loss.sum(), log_softmax_backward(slope, log_q)


def _ce_and_grad(logits_RV: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy and its gradient, ``q − onehot``, in the logits' memory."""
    log_q = log_softmax_(logits_RV)
    ce = _nll(log_q, labels)
    return ce, _add_at_labels(log_q.exp_(), labels, -1.0)


def _nll(log_q_RV: Tensor, labels: Tensor) -> Tensor:
    return -log_q_RV.gather(-1, labels.unsqueeze(-1)).sum()


def _add_at_labels(x_RV: Tensor, labels: Tensor, value: float) -> Tensor:
    index = labels.unsqueeze(-1)
    return x_RV.scatter_add_(-1, index, x_RV.new_full((), value).expand(index.shape))
