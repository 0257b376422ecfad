"""Forward Kullback-Leibler divergence over the teacher's favourite tokens."""

import torch
from torch import Tensor

from kd_losses.divergences.base import KDLoss
from kd_losses.divergences.forward_kl import kl
from kd_losses.functional import require, topk_indices


class TopKKLLoss(KDLoss):
    """``KL(p‖q)`` over the teacher's ``top_k`` logits, both sides renormalised over them.

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
        return kl(*self._of_favourites(student_logits, teacher_logits)[1:])

    def per_token_and_grad(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, weight: float
    ) -> tuple[Tensor, Tensor]:
        """Return `per_token` and its weighted gradient, ``(q − p)/T`` at the favourites."""
        ids, log_p, log_q = self._of_favourites(student_logits, teacher_logits)
        slope = (log_q.exp() - log_p.exp()).mul_(weight / self.temperature)
        return kl(log_p, log_q), student_logits.zero_().scatter_(-1, ids, slope)

    def _of_favourites(
        self, student_logits: Tensor, teacher_logits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the teacher's ``top_k`` ids and both sides' log-probabilities among them."""
        ids = topk_indices(teacher_logits, self.top_k, ordered=False)
        log_p = torch.log_softmax(teacher_logits.gather(-1, ids) / self.temperature, dim=-1)
        log_q = torch.log_softmax(student_logits.gather(-1, ids) / self.temperature, dim=-1)
        return ids, log_p, log_q
