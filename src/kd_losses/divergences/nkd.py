"""Normalised knowledge distillation (target and non-target part)."""

import torch
from torch import Tensor

from kd_losses.divergences.base import KDLoss
from kd_losses.functional import at_target, decouple_, require, topk_indices, without_target


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
        """Return `per_token` and its weighted gradient; at temperature 1 in closed form.

        With q_y the target's probability: ``−p_y·(1 − q_y)`` at the target, and
        ``(p_y·(1 − q_y) + γ)·q̂ − γ·p̂`` at the others.
        """
        if self.temperature != 1:
            return super().per_token_and_grad(student_logits, teacher_logits, labels, weight)
        top = topk_indices(teacher_logits, 1)
        log_pair_p, log_others_p = decouple_(teacher_logits, top.squeeze(-1))
        log_pair_q, log_others_q = decouple_(student_logits, top.squeeze(-1))
        p_top, others_p = log_pair_p[:, :1].exp(), log_others_p.exp_()
        others = torch.linalg.vecdot(others_p, log_others_q)
        loss = -(p_top * log_pair_q[:, :1]).squeeze(-1) - self.gamma * others
        pull = p_top * log_pair_q[:, 1:].exp()
        grad = log_others_q.exp_().mul_(weight * (pull + self.gamma))
        grad = torch.sub(grad, others_p, alpha=weight * self.gamma, out=student_logits)
        return loss, grad.scatter_(-1, top, -weight * pull)

    def _of_teacher(self, logits_NV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the top token ``[N]``, its probability and p̂ ``[N, V]``, which is 0 at the top."""
        top = topk_indices(logits_NV, 1).squeeze(-1)
        p_top = (at_target(logits_NV, top) - logits_NV.logsumexp(-1)).exp()
        return top, p_top, (without_target(logits_NV, top) / self.temperature).softmax(-1)
