"""Normalised knowledge distillation (target and non-target part)."""

import torch
from torch import Tensor

from kd_losses.base import KDLoss
from kd_losses.checks import require
from kd_losses.target import at_target, without_target


class NKDLoss(KDLoss):
    """``−p_y·log q_y − γ·Σ p̂·log q̂``, with y the teacher's most probable token.

    p and q are teacher and student at temperature 1; p̂ and q̂ are renormalised over all tokens but
    y, at ``temperature``. It is a cross-entropy: not 0 when both sides agree.

    Args:
        gamma: γ, weight of the part over the other tokens.
        temperature: divides the logits of that part only.
        ignore_index: label of the positions that do not count.

    Raises:
        ValueError: if γ is negative or the temperature is not above 0.

    Source: NKD, https://arxiv.org/abs/2303.13005, as evaluated in BiLD,
        https://aclanthology.org/2025.coling-main.78.
    """

    def __init__(
        self, gamma: float = 0.25, temperature: float = 1.0, ignore_index: int = -100
    ) -> None:
        super().__init__(temperature=temperature, ignore_index=ignore_index)
        require(gamma >= 0, "gamma", gamma, "at least 0")
        self.gamma = gamma

    def per_token(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every token."""
        top = teacher_logits.max(-1)
        p_y = (top.values - teacher_logits.logsumexp(-1)).exp()
        log_q_y = at_target(student_logits, top.indices) - student_logits.logsumexp(-1)
        others_p = without_target(teacher_logits, top.indices) / self.temperature
        others_q = without_target(student_logits, top.indices) / self.temperature
        cross_entropy = others_q.logsumexp(-1) - torch.linalg.vecdot(others_p.softmax(-1), others_q)
        return -p_y * log_q_y + self.gamma * cross_entropy
