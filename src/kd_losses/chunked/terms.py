"""What can be summed over rows of logits: cross-entropy, a divergence, an observation.

Shape suffixes: R rows of a tile, V vocabulary.
"""

from typing import ClassVar

import torch
from torch import Tensor

from kd_losses.divergences.base import KDLoss
from kd_losses.functional import at_target, require, topk_indices, value_and_grad
from kd_losses.reads import NOTHING, WHOLE, Reads
from kd_losses.top_k import TopK


class RowTerm:
    """A sum over rows. A subclass defines `per_token`; its gradient comes from autograd.

    Attributes:
        needs_teacher: whether it reads the teacher's logits; without, they may be ``None``.
        shares_vocabulary: whether an id must mean the same token on both sides.
        observed: whether it is only read, never trained for.
        on_labels: whether it is the cross-entropy, whose gradient other terms' passes make too.
    """

    needs_teacher: bool = False
    shares_vocabulary: bool = True
    observed: bool = False
    on_labels: ClassVar[bool] = False

    def __str__(self) -> str:
        return type(self).__name__

    @property
    def reads(self) -> Reads:
        """What of the teacher's rows it reads."""
        return WHOLE if self.needs_teacher else NOTHING

    def per_token(
        self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor
    ) -> Tensor:
        """Return the term of every row ``[R]``; the inputs stay as they are.

        Args:
            student_logits: ``[R, V]``, fp32.
            teacher_logits: ``[R, Vt]``, fp32.
            labels: ``[R]``; the ignored index where a row has none.
        """
        raise NotImplementedError

    def per_token_and_grad(
        self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor, weight: float
    ) -> tuple[Tensor, Tensor]:
        """Return `per_token`, and ``weight`` times its gradient w.r.t. the student's logits.

        The callee may overwrite both logits.
        """
        return value_and_grad(self.per_token, student_logits, teacher_logits, labels, weight)

    def per_token_top_k(self, student_logits: Tensor, teacher: TopK, labels: Tensor) -> Tensor:
        """Return `per_token` from what was kept of the teacher, where that is what it `reads`."""
        raise NotImplementedError

    def per_token_top_k_and_grad(
        self, student_logits: Tensor, teacher: TopK, labels: Tensor, weight: float
    ) -> tuple[Tensor, Tensor]:
        """Return that and its weighted gradient; the callee may overwrite the student's logits."""
        return value_and_grad(self.per_token_top_k, student_logits, teacher, labels, weight)

    @property
    def distribution(self) -> "KDLoss | None":
        """The divergence that it is of plain log-probabilities, if it is one."""
        return None


class CrossEntropy(RowTerm):
    """``−log q_y``, y the label."""

    on_labels = True

    def per_token(
        self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor
    ) -> Tensor:
        """Return the cross-entropy of every row."""
        return -at_target(torch.log_softmax(student_logits, dim=-1), labels)


class Entropy(RowTerm):
    """``−Σ q log q``, in nats: how undecided the student is."""

    observed = True

    def per_token(
        self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor
    ) -> Tensor:
        """Return the entropy of every row."""
        log_q = torch.log_softmax(student_logits, dim=-1)
        return -(log_q.exp() * log_q).sum(-1)


class Divergence(RowTerm):
    """A divergence of `kd_losses`.

    Args:
        kd_loss: any `KDLoss`.

    Raises:
        ValueError: if it is none.
    """

    needs_teacher = True

    def __init__(self, kd_loss: KDLoss) -> None:
        require(isinstance(kd_loss, KDLoss), "kd_loss", type(kd_loss).__name__, "a KDLoss")
        self.kd_loss = kd_loss
        self.shares_vocabulary = kd_loss.shares_vocabulary

    def __str__(self) -> str:
        return type(self.kd_loss).__name__

    @property
    def reads(self) -> Reads:
        """What the divergence reads."""
        return self.kd_loss.reads

    def per_token(
        self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor
    ) -> Tensor:
        """Return the divergence of every row."""
        assert teacher_logits is not None
        return self.kd_loss.per_token(student_logits, teacher_logits, labels)

    def per_token_and_grad(
        self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor, weight: float
    ) -> tuple[Tensor, Tensor]:
        """Return it with its closed form's gradient, where there is one."""
        assert teacher_logits is not None
        return self.kd_loss.per_token_and_grad(student_logits, teacher_logits, labels, weight)

    def per_token_top_k(self, student_logits: Tensor, teacher: TopK, labels: Tensor) -> Tensor:
        """Return it from what was kept of the teacher."""
        return self.kd_loss.per_token_top_k(student_logits, teacher, labels)

    def per_token_top_k_and_grad(
        self, student_logits: Tensor, teacher: TopK, labels: Tensor, weight: float
    ) -> tuple[Tensor, Tensor]:
        """Return that with its closed form's gradient, where there is one."""
        return self.kd_loss.per_token_top_k_and_grad(student_logits, teacher, labels, weight)

    @property
    def distribution(self) -> KDLoss | None:
        """The divergence, if it is of plain log-probabilities."""
        return self.kd_loss if self.kd_loss.uses_plain_log_probs else None


class TopOneAgreement(RowTerm):
    """1 where student and teacher have the same most probable token, else 0."""

    needs_teacher = True
    observed = True
    reads = Reads()

    def per_token(
        self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor
    ) -> Tensor:
        """Return whether the two agree on every row."""
        assert teacher_logits is not None
        same = student_logits.argmax(-1) == teacher_logits.argmax(-1)
        return same.to(student_logits.dtype)

    def per_token_top_k(self, student_logits: Tensor, teacher: TopK, labels: Tensor) -> Tensor:
        """Return whether the two agree on every row."""
        return (student_logits.argmax(-1) == teacher.ids[:, 0]).to(student_logits.dtype)


class KeptFavourites(RowTerm):
    """The share of the student's ``top_k`` ids that were kept of the teacher; 1 of a whole one.

    Where an id was not kept, `BiLDLoss` only knows that it is one of the others.

    Args:
        top_k: how many.

    Raises:
        ValueError: if ``top_k`` is below 1.
    """

    needs_teacher = True
    observed = True
    reads = Reads()

    def __init__(self, top_k: int = 8) -> None:
        require(top_k >= 1, "top_k", top_k, "at least 1")
        self.top_k = top_k

    def per_token(
        self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor
    ) -> Tensor:
        """Return 1 for every row."""
        return torch.ones_like(student_logits[:, 0])

    def per_token_top_k(self, student_logits: Tensor, teacher: TopK, labels: Tensor) -> Tensor:
        """Return the share of every row."""
        kept = teacher.holds(topk_indices(student_logits, self.top_k, ordered=False))
        return kept.to(student_logits.dtype).mean(-1)
