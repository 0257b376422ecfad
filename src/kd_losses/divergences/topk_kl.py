"""Forward Kullback-Leibler divergence over the teacher's favourite tokens."""

import torch
from torch import Tensor

from kd_losses.divergences.base import KDLoss
from kd_losses.divergences.forward_kl import kl
from kd_losses.functional import require, topk_indices
from kd_losses.reads import Reads
from kd_losses.top_k import TopK


class TopKKLLoss(KDLoss):
    """``KL(p‖q)`` over the teacher's ``top_k`` logits, both sides renormalised over them.

    A teacher that was kept as its most probable ids (`TopK`) gives the same, if these are
    ``top_k`` or more.

    Args:
        top_k: how many tokens count; all of them if the vocabulary is smaller.
        temperature: both sides' logits are divided by it.
        ignore_index: label of the positions that do not count.

    Raises:
        ValueError: if ``top_k`` is below 2 or the temperature is not above 0.

    Source: as evaluated in BiLD, https://aclanthology.org/2025.coling-main.78.
    """

    def __init__(
        self, top_k: int = 1024, temperature: float = 1.0, ignore_index: int = -100
    ) -> None:
        super().__init__(temperature=temperature, ignore_index=ignore_index)
        require(top_k >= 2, "top_k", top_k, "at least 2")
        self.top_k = top_k

    def per_token(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every token."""
        return kl(*self._of_favourites(student_logits, *self._favourites(teacher_logits)))

    def per_token_and_grad(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, weight: float
    ) -> tuple[Tensor, Tensor]:
        """Return `per_token` and its weighted gradient, ``(q − p)/T`` at the favourites."""
        return self._with_grad_(student_logits, *self._favourites(teacher_logits), weight)

    @property
    def reads(self) -> Reads:
        """The teacher's ``top_k`` ids."""
        return Reads(top_k=self.top_k)

    def per_token_top_k(self, student_logits: Tensor, teacher: TopK, labels: Tensor) -> Tensor:
        """Return the loss of every token."""
        return kl(*self._of_favourites(student_logits, *self._kept_favourites(teacher)))

    def per_token_top_k_and_grad(
        self, student_logits: Tensor, teacher: TopK, labels: Tensor, weight: float
    ) -> tuple[Tensor, Tensor]:
        """Return that and its weighted gradient."""
        return self._with_grad_(student_logits, *self._kept_favourites(teacher), weight)

    def _favourites(self, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the teacher's ``top_k`` ids and its logits at these."""
        ids = topk_indices(teacher_logits, self.top_k, ordered=False)
        return ids, teacher_logits.gather(-1, ids)

    def _kept_favourites(self, teacher: TopK) -> tuple[Tensor, Tensor]:
        return teacher.ids[:, : self.top_k], teacher.log_probs[:, : self.top_k]

    def _of_favourites(
        self, student_logits: Tensor, ids: Tensor, favourites: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return both sides' log-probabilities among the favourites."""
        log_p = torch.log_softmax(favourites / self.temperature, dim=-1)
        log_q = torch.log_softmax(student_logits.gather(-1, ids) / self.temperature, dim=-1)
        return log_p, log_q

    def _with_grad_(
        self, student_logits: Tensor, ids: Tensor, favourites: Tensor, weight: float
    ) -> tuple[Tensor, Tensor]:
        log_p, log_q = self._of_favourites(student_logits, ids, favourites)
        slope = (log_q.exp() - log_p.exp()).mul_(weight / self.temperature)
        return kl(log_p, log_q), student_logits.zero_().scatter_(-1, ids, slope)
