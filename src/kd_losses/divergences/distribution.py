"""Divergences that depend on the two probability distributions alone.

Shape suffixes: N tokens, V vocabulary, K ids kept.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from kd_losses.divergences.base import KDLoss
from kd_losses.divergences.categories import KeptIds, kept_log_probs
from kd_losses.functional import log_softmax_backward_
from kd_losses.reads import Reads
from kd_losses.top_k import TopK


class DistributionLoss(KDLoss):
    """A divergence D(p, q) of teacher p and student q, both softmaxes of logits / temperature.

    A subclass defines `divergence`. It may override `divergence_and_slope` where a closed form
    takes fewer passes over the vocabulary than autograd.

    Of a teacher whose K most probable ids A were kept (`TopK`), it is D between two distributions
    over K + 1 categories, the ids of A and all others together: ``p = (p_i for i in A, p_B)`` and
    ``q = (q_i for i in A, q_B)`` with ``p_B = Σ_{j∉A} p_j`` and ``q_B = Σ_{j∉A} q_j``, each at the
    temperature. The student's mass outside of A is thus held to the teacher's, but not how it is
    spread. Merging categories never makes an f-divergence larger; K = V is the whole D.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "divergence" in vars(cls) and "divergence_and_slope" not in vars(cls):
            cls.divergence_and_slope = (  # type: ignore[method-assign]
                DistributionLoss.divergence_and_slope
            )

    @property
    def uses_plain_log_probs(self) -> bool:
        """Whether log p and log q are log-softmaxes of the very logits, as for cross-entropy."""
        cls, ours = type(self), DistributionLoss
        as_is = cls.per_token, cls.per_token_top_k
        return self.temperature == 1 and as_is == (ours.per_token, ours.per_token_top_k)

    @property
    def reads(self) -> Reads:
        """Any number of ids, and the mass of the others at its temperature."""
        return Reads(temperature=self.temperature)

    @abstractmethod
    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return D(p, q) of every token ``[N]`` from fp32 log-probabilities ``[N, V]``.

        Of a teacher that was kept as its most probable ids they are ``[N, K + 1]``.
        """

    def divergence_and_slope(
        self, log_p: Tensor, log_q: Tensor, weight: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return D and ``weight`` times its slope ∂D/∂log q ``[N, V]``, each log q taken as free.

        A multiple of q may be added to the slope: the softmax's backward cancels it. The callee may
        overwrite ``log_p`` but not ``log_q``.

        Args:
            log_p: ``[N, V]``.
            log_q: ``[N, V]``.
            weight: a number, or one for every token ``[N, 1]``.
        """
        with torch.enable_grad():
            leaf = log_q.detach().requires_grad_()
            loss = self.divergence(log_p, leaf)
            (slope,) = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach(), slope.contiguous().mul_(weight)

    def per_token(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every token."""
        log_p = torch.log_softmax(teacher_logits / self.temperature, dim=-1)
        log_q = torch.log_softmax(student_logits / self.temperature, dim=-1)
        return self.divergence(log_p, log_q)

    def per_token_and_grad(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, weight: float
    ) -> tuple[Tensor, Tensor]:
        """Return `per_token` and its weighted gradient in the student logits' memory."""
        if self.temperature != 1:
            teacher_logits.div_(self.temperature)
            student_logits.div_(self.temperature)
        log_p, log_q = teacher_logits.log_softmax(-1), student_logits.log_softmax(-1)
        loss, slope = self.divergence_and_slope(log_p, log_q, weight / self.temperature)
        return loss, log_softmax_backward_(slope, log_q, out=student_logits)

    def per_token_top_k(self, student_logits: Tensor, teacher: TopK, labels: Tensor) -> Tensor:
        """Return the loss of every token between what was kept and all others together."""
        log_q = kept_log_probs(student_logits / self.temperature, teacher.ids)
        return self.divergence(teacher.log_p(self.temperature), log_q)

    def per_token_top_k_and_grad(
        self, student_logits: Tensor, teacher: TopK, labels: Tensor, weight: float
    ) -> tuple[Tensor, Tensor]:
        """Return `per_token_top_k` and its weighted gradient in the student logits' memory."""
        if self.temperature != 1:
            student_logits.div_(self.temperature)
        student = KeptIds(student_logits, teacher.ids)
        log_p = teacher.log_p(self.temperature)
        loss, slope = self.divergence_and_slope(log_p, student.log_q, weight / self.temperature)
        return loss, student.backward_(slope)
