"""The teacher's side of a tile: whole rows of logits, or what was kept of them (`TopK`).

Shape suffixes: R rows of a tile, C of a chunk, V vocabulary.
"""

from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from kd_losses.chunked.terms import RowTerm
from kd_losses.divergences.categories import Categories, EachId


class Side(Protocol):
    """What of the teacher a term may read for the rows of a tile: it picks the term's method."""

    @property
    def logits(self) -> Tensor | None:
        """Whole rows ``[R, V]``; None where there are none."""

    def copy(self) -> Self:
        """Return one that may be overwritten while this one is still needed."""

    def log_p(self) -> Tensor:
        """Return the teacher's log-probabilities at temperature 1, which may be overwritten."""

    def categories_(self, student_logits: Tensor) -> Categories:
        """Return the student's distribution over the same categories; overwrites the logits."""

    def per_token(self, term: RowTerm, student_logits: Tensor, labels: Tensor) -> Tensor:
        """Return a term of every row ``[R]``; nothing is overwritten."""

    def per_token_and_grad(
        self, term: RowTerm, student_logits: Tensor, labels: Tensor, weight: float
    ) -> tuple[Tensor, Tensor]:
        """Return that and its weighted gradient ``[R, V]``; both sides may be overwritten."""


class Chunk(Protocol):
    """The teacher's side of a chunk."""

    def tile(self, part: slice, dtype: torch.dtype) -> Side:
        """Return that of some of its rows, in the type of the loss arithmetic."""


class Dense(NamedTuple):
    """Whole rows.

    Attributes:
        logits: ``[R, V]``.
    """

    logits: Tensor

    def copy(self) -> "Dense":
        """Return it in memory of its own."""
        return Dense(self.logits.clone())

    def log_p(self) -> Tensor:
        """Return the log-softmax."""
        return self.logits.log_softmax(-1)

    def categories_(self, student_logits: Tensor) -> EachId:
        """Return the student's softmax."""
        return EachId(student_logits)

    def per_token(self, term: RowTerm, student_logits: Tensor, labels: Tensor) -> Tensor:
        """Return a term of every row."""
        return term.per_token(student_logits, self.logits, labels)

    def per_token_and_grad(
        self, term: RowTerm, student_logits: Tensor, labels: Tensor, weight: float
    ) -> tuple[Tensor, Tensor]:
        """Return that and its weighted gradient."""
        return term.per_token_and_grad(student_logits, self.logits, labels, weight)
