"""Bi-directional logits difference."""

import torch
from torch import Tensor

from kd_losses.base import KDLoss
from kd_losses.checks import require
from kd_losses.forward_kl import kl
from kd_losses.topk import topk_indices


class BiLDLoss(KDLoss):
    """Teacher-led plus student-led logits difference loss.

    Teacher-led: take the teacher's ``top_k`` ids, largest first, all differences ``z_i − z_j`` with
    i before j of teacher and of student logits at these ids, and the KL between the softmaxes of
    the two sets of differences. Student-led: the same at the student's ``top_k`` ids.

    Args:
        top_k: how many ids each side contributes; all of them if the vocabulary is smaller.
        temperature: both sides' logits are divided by it.
        ignore_index: label of the positions that do not count.

    Raises:
        ValueError: if ``top_k`` is below 3 (fewer ids give one difference, whose softmax is always
            1) or the temperature is not above 0.

    Source: BiLD, https://aclanthology.org/2025.coling-main.78.
    """

    def __init__(self, top_k: int = 8, temperature: float = 3.0, ignore_index: int = -100) -> None:
        super().__init__(temperature=temperature, ignore_index=ignore_index)
        require(top_k >= 3, "top_k", top_k, "at least 3")
        self.top_k = top_k

    def per_token(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every token."""
        student, teacher = student_logits, teacher_logits
        by_teacher = topk_indices(teacher, self.top_k)
        by_student = topk_indices(student.detach(), self.top_k)
        return self._led_by(by_teacher, student, teacher) + self._led_by(
            by_student, student, teacher
        )

    def _led_by(self, ids: Tensor, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        first, second = torch.triu_indices(
            ids.shape[-1], ids.shape[-1], offset=1, device=ids.device
        )

        def log_softmax_of_differences(logits: Tensor) -> Tensor:
            top = logits.gather(-1, ids) / self.temperature
            return torch.log_softmax(top[:, first] - top[:, second], dim=-1)

        return kl(
            log_softmax_of_differences(teacher_logits), log_softmax_of_differences(student_logits)
        )
