"""Decoupled knowledge distillation."""

import torch
from torch import Tensor

from kd_losses.base import KDLoss
from kd_losses.checks import require
from kd_losses.forward_kl import kl
from kd_losses.normalized import token_temperature
from kd_losses.target import at_target, without_target


class DKDLoss(KDLoss):
    """``τ_p²·(α·KL(b_p‖b_q) + β·KL(p̂‖q̂))`` on logits / τ, ``τ = t_norm · std(logits)``.

    b is the pair (probability of the target, probability of all others); p̂ and q̂ are teacher and
    student renormalised over the others. The target is the label, or the teacher's most probable
    token where there is none. The student's τ carries gradient.

    Args:
        alpha: α, weight of the target part.
        beta: β, weight of the non-target part.
        t_norm: temperature in standard deviations of each side's logits.
        ignore_index: label of the positions that do not count.

    Raises:
        ValueError: if α or β is negative or ``t_norm`` not above 0.

    Source: DKD, https://arxiv.org/abs/2203.08679, normalised as in BiLD,
        https://aclanthology.org/2025.coling-main.78.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 0.5,
        t_norm: float = 2.0,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(ignore_index=ignore_index)
        require(alpha >= 0, "alpha", alpha, "at least 0")
        require(beta >= 0, "beta", beta, "at least 0")
        require(t_norm > 0, "t_norm", t_norm, "above 0")
        self.alpha = alpha
        self.beta = beta
        self.t_norm = t_norm

    def per_token(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every token."""
        target = labels.where(labels != self.ignore_index, teacher_logits.max(-1).indices)
        teacher_t = token_temperature(teacher_logits, self.t_norm)
        student_t = token_temperature(student_logits, self.t_norm)
        pair_p, others_p = _decouple(teacher_logits / teacher_t, target)
        pair_q, others_q = _decouple(student_logits / student_t, target)
        loss = self.alpha * kl(pair_p, pair_q) + self.beta * kl(others_p, others_q)
        return teacher_t.squeeze(-1).square() * loss


def _decouple(logits_NV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities (target, rest) ``[N, 2]`` and those of the others ``[N, V]``."""
    others = without_target(logits_NV, target_N)
    pair = torch.stack([at_target(logits_NV, target_N), others.logsumexp(-1)], dim=-1)
    return pair.log_softmax(-1), others.log_softmax(-1)
