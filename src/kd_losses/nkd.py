"""Normalised knowledge distillation (target and non-target part)."""

import torch
from torch import Tensor

from kd_losses.base import KDLoss
from kd_losses.checks import require
from kd_losses.distribution import log_softmax_
from kd_losses.target import at_target, without_target
from kd_losses.topk import topk_indices


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
        top, p_top, others_p = self._of_teacher(teacher_logits)
        log_q_top = at_target(student_logits, top) - student_logits.logsumexp(-1)
        others_q = without_target(student_logits, top) / self.temperature
        cross_entropy = others_q.logsumexp(-1) - torch.linalg.vecdot(others_p, others_q)
        return self.gamma * cross_entropy - p_top * log_q_top

    def per_token_and_grad(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, weight: float
    ) -> tuple[Tensor, Tensor]:
        """Return `per_token` and its weighted gradient, ``p_y·(q − 1_y) + γ/T·(q̂ − p̂)``."""
        top, p_top, others_p = self._of_teacher(teacher_logits)
        log_others_q = log_softmax_(without_target(student_logits, top), self.temperature)
        log_q = log_softmax_(student_logits)
        others = torch.linalg.vecdot(others_p, log_others_q)
        loss = -p_top * at_target(log_q, top) - self.gamma * others
        scale = weight * p_top.unsqueeze(-1)
        grad = log_q.exp_().mul_(scale)
        grad.scatter_add_(-1, top.unsqueeze(-1), -scale)
        difference = log_others_q.exp_().sub_(others_p)
        return loss, grad.add_(difference, alpha=weight * self.gamma / self.temperature)

    def _of_teacher(self, logits_NV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the top token ``[N]``, its probability and p̂ ``[N, V]``, which is 0 at the top."""
        top = topk_indices(logits_NV, 1).squeeze(-1)
        p_top = (at_target(logits_NV, top) - logits_NV.logsumexp(-1)).exp()
        return top, p_top, (without_target(logits_NV, top) / self.temperature).softmax(-1)
