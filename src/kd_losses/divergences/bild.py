"""Bi-directional logits difference."""

import torch
from torch import Tensor

from kd_losses.divergences.base import KDLoss
from kd_losses.divergences.forward_kl import kl
from kd_losses.functional import require, topk_indices
from kd_losses.reads import Reads
from kd_losses.top_k import TopK


class BiLDLoss(KDLoss):
    """Teacher-led plus student-led logits difference loss.

    Teacher-led: take the teacher's ``top_k`` ids, largest first, all differences ``z_i − z_j`` with
    i before j of teacher and of student logits at these ids, and the KL between the softmaxes of
    the two sets of differences. Student-led: the same at the student's ``top_k`` ids.

    Of a teacher that was kept as its ``top_k`` or more most probable ids (`TopK`), the teacher-led
    half is the same. The student-led half is where they include the student's ids; a logit that was
    not kept is taken to be ``log rest − log(V − K)``, the others' mass spread evenly, which makes
    all that were not kept equal. `KeptFavourites` measures how many of the student's ids were kept.

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
        ids = self._ids(student_logits.detach(), teacher_logits)
        return self._of_chosen(student_logits.gather(-1, ids), teacher_logits.gather(-1, ids))

    @property
    def reads(self) -> Reads:
        """The teacher's ``top_k`` ids, and the mass of the others at temperature 1."""
        return Reads(top_k=self.top_k, temperature=1.0)

    def per_token_top_k(self, student_logits: Tensor, teacher: TopK, labels: Tensor) -> Tensor:
        """Return the loss of every token."""
        ids, chosen = self._kept(student_logits.detach(), teacher)
        return self._of_chosen(student_logits.gather(-1, ids), chosen)

    def per_token_and_grad(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, weight: float
    ) -> tuple[Tensor, Tensor]:
        """Return `per_token` and its weighted gradient, which autograd sees only at the ids."""
        ids = self._ids(student_logits, teacher_logits)
        return self._with_grad_(student_logits, ids, teacher_logits.gather(-1, ids), weight)

    def per_token_top_k_and_grad(
        self, student_logits: Tensor, teacher: TopK, labels: Tensor, weight: float
    ) -> tuple[Tensor, Tensor]:
        """Return `per_token_top_k` and its weighted gradient."""
        return self._with_grad_(student_logits, *self._kept(student_logits, teacher), weight)

    def _with_grad_(
        self, student_logits: Tensor, ids: Tensor, teacher_chosen: Tensor, weight: float
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            chosen = student_logits.detach().gather(-1, ids).requires_grad_()
            loss = self._of_chosen(chosen, teacher_chosen)
            (grad,) = torch.autograd.grad(loss, chosen, torch.full_like(loss, weight))
        # An id that both sides chose appears twice and collects both gradients.
        return loss.detach(), student_logits.zero_().scatter_add_(-1, ids, grad)

    def _ids(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the teacher's ``top_k`` ids, then the student's, ``[N, 2K]``."""
        sides = teacher_logits, student_logits
        return torch.cat([topk_indices(side, self.top_k) for side in sides], dim=-1)

    def _kept(self, student_logits: Tensor, teacher: TopK) -> tuple[Tensor, Tensor]:
        """Return the same ids and what is known of the teacher's logits at these, ``[N, 2K]``."""
        student_led = topk_indices(student_logits, self.top_k)
        led = teacher.log_probs_at(student_led)
        ids = torch.cat([teacher.ids[:, : self.top_k], student_led], dim=-1)
        return ids, torch.cat([teacher.log_probs[:, : self.top_k], led], dim=-1)

    def _of_chosen(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the loss of every token from the logits at its ids ``[N, 2K]``."""
        sides = zip(teacher_logits.chunk(2, dim=-1), student_logits.chunk(2, dim=-1), strict=True)
        teacher_led, student_led = (
            kl(self._log_softmax_of_differences(p), self._log_softmax_of_differences(q))
            for p, q in sides
        )
        return teacher_led + student_led

    def _log_softmax_of_differences(self, top_NK: Tensor) -> Tensor:
        k = top_NK.shape[-1]
        first, second = torch.triu_indices(k, k, offset=1, device=top_NK.device)
        scaled = top_NK / self.temperature
        return torch.log_softmax(scaled[:, first] - scaled[:, second], dim=-1)
