"""Divergences on logits measured in their own standard deviations.

Shape suffixes: N tokens, V vocabulary.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from kd_losses.divergences.base import KDLoss
from kd_losses.functional import EXCLUDED, require


class NormalizedLoss(KDLoss):
    """``τ_p²·D(logits_p / τ_p, logits_q / τ_q)`` with ``τ = t_norm · std(logits)`` of each token.

    A subclass defines D, which must not change when a constant is added to all logits of a token.

    Args:
        t_norm: temperature in standard deviations.
        ignore_index: label of the positions that do not count.

    Raises:
        ValueError: if ``t_norm`` is not above 0.

    Source: NormKD, https://arxiv.org/abs/2308.00520.
    """

    def __init__(self, t_norm: float, ignore_index: int = -100) -> None:
        super().__init__(ignore_index=ignore_index)
        require(t_norm > 0, "t_norm", t_norm, "above 0")
        self.t_norm = t_norm

    @abstractmethod
    def divergence(self, student_NV: Tensor, teacher_NV: Tensor, labels: Tensor) -> Tensor:
        """Return D of every token ``[N]`` from scaled logits."""

    @abstractmethod
    def divergence_and_grad(
        self, student_NV: Tensor, teacher_NV: Tensor, labels: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return D and ``weight`` ``[N, 1]`` times its gradient w.r.t. the student's scaled logits.

        The callee may overwrite the teacher's logits but not the student's.
        """

    def per_token(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every token."""
        teacher_t = self.t_norm * _std(teacher_logits)
        student_t = self.t_norm * _std(student_logits)
        loss = self.divergence(student_logits / student_t, teacher_logits / teacher_t, labels)
        return teacher_t.squeeze(-1).square() * loss

    def per_token_and_grad(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, weight: float
    ) -> tuple[Tensor, Tensor]:
        """Return `per_token` and its weighted gradient."""
        student_t = self._standardize_(student_logits)
        teacher_t = self._standardize_(teacher_logits)
        loss, grad = self.divergence_and_grad(
            student_logits, teacher_logits, labels, weight * teacher_t.square() / student_t
        )
        # A student logit also moves its token's τ, by t_norm² / (V − 1) times the scaled logit.
        through_t = torch.linalg.vecdot(grad, student_logits).unsqueeze(-1)
        through_t *= -(self.t_norm**2) / (grad.shape[-1] - 1)
        return teacher_t.squeeze(-1).square() * loss, grad.addcmul_(student_logits, through_t)

    def _standardize_(self, logits_NV: Tensor) -> Tensor:
        """Centre the logits, divide them by their τ, and return τ ``[N, 1]``."""
        logits_NV -= logits_NV.mean(-1, keepdim=True)
        norm = torch.linalg.vector_norm(logits_NV, dim=-1, keepdim=True)
        temperature = self.t_norm * _floor(norm / (logits_NV.shape[-1] - 1) ** 0.5)
        logits_NV /= temperature
        return temperature


def _std(logits_NV: Tensor) -> Tensor:
    """Return the standard deviation of every token ``[N, 1]`` over the ids not excluded."""
    inside = logits_NV > EXCLUDED / 2
    count = inside.sum(-1, keepdim=True, dtype=logits_NV.dtype)
    mean = logits_NV.where(inside, 0).sum(-1, keepdim=True) / count
    centred = (logits_NV - mean).where(inside, 0)
    norm = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    return _floor(norm / (count - 1).sqrt())


def _floor(std: Tensor) -> Tensor:
    # Equal logits have no scale of their own; any finite one leaves their softmax uniform.
    return std.clamp(min=torch.finfo(std.dtype).eps)
