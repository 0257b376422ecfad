"""Sums and logit gradient of one tile: a block of rows small enough to stay in cache.

Shape suffixes: R rows of the tile, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kd_losses.chunked.fused import shared_softmax
from kd_losses.chunked.sides import Side
from kd_losses.chunked.terms import RowTerm
from kd_losses.divergences.distribution import DistributionLoss
from kd_losses.functional import add_at_, at_target


class Weighted(NamedTuple):
    """A term with its place among the sums and its weight."""

    place: int
    term: RowTerm
    weight: float


class Tile(NamedTuple):
    """Rows: the student's logits ``[R, V]``, the teacher's side or ``None``, and labels ``[R]``."""

    student: Tensor
    teacher: Side | None
    labels: Tensor

    def per_token(self, term: RowTerm) -> Tensor:
        """Return a term of every row."""
        if self.teacher is None or not term.needs_teacher:
            return term.per_token(self.student, None, self.labels)
        return self.teacher.per_token(term, self.student, self.labels)

    def per_token_and_grad_(self, term: RowTerm, weight: float) -> tuple[Tensor, Tensor]:
        """Return that and its weighted gradient ``[R, V]``; the tile may be overwritten."""
        if self.teacher is None or not term.needs_teacher:
            return term.per_token_and_grad(self.student, None, self.labels, weight)
        return self.teacher.per_token_and_grad(term, self.student, self.labels, weight)

    def copy(self) -> "Tile":
        """Return it in memory of its own."""
        teacher = None if self.teacher is None else self.teacher.copy()
        return Tile(self.student.clone(), teacher, self.labels)


def add_sums(sums: list[Tensor], terms: Sequence[Weighted], tile: Tile) -> None:
    """Add every term's sum over the tile."""
    for place, term, _ in terms:
        sums[place] += tile.per_token(term).sum()


def add_sums_and_grad_(
    sums: list[Tensor], terms: Sequence[Weighted], tile: Tile, dtype: torch.dtype
) -> Tensor:
    """Add every term's sum, and return the weighted gradient ``[R, V]``; overwrites the logits.

    The gradient may come in ``dtype`` already, what it is to be multiplied in.
    """
    add_sums(sums, [one for one in terms if one.term.observed], tile)
    trained = [one for one in terms if not one.term.observed]
    labelled = next((one for one in trained if one.term.on_labels), None)
    soft = [one for one in trained if not one.term.on_labels]
    shared = soft[0].term.distribution if len(soft) == 1 else None
    if labelled is not None and isinstance(shared, DistributionLoss):
        return _shared_softmax_(sums, (labelled, soft[0]), shared, tile, dtype)

    q_RV = None
    if labelled is not None:
        nll, q_RV = _nll_and_probs(tile.student, tile.labels)
        sums[labelled.place] += nll
    grad = _soft_grad_(sums, soft, tile)
    if labelled is None or q_RV is None:
        return tile.student.zero_() if grad is None else grad
    weight = labelled.weight
    grad = q_RV.mul_(weight) if grad is None else grad.add_(q_RV, alpha=weight)
    return add_at_(grad, tile.labels, -weight)


def _shared_softmax_(
    sums: list[Tensor],
    terms: tuple[Weighted, Weighted],
    loss: DistributionLoss,
    tile: Tile,
    dtype: torch.dtype,
) -> Tensor:
    """Cross-entropy and a divergence of the same log q: one softmax and its backward serve both."""
    labelled, soft = terms
    assert tile.teacher is not None
    if tile.teacher.logits is not None:
        sides = tile.student, tile.teacher.logits, tile.labels
        fused = shared_softmax(loss, *sides, (labelled.weight, soft.weight), dtype)
        if fused is not None:
            sums[labelled.place] += fused.nll
            sums[soft.place] += fused.value
            return fused.grad
    log_p, student = tile.teacher.log_p(), tile.teacher.categories_(tile.student)
    sums[labelled.place] += student.nll(tile.labels).sum()
    value, slope = loss.divergence_and_slope(log_p, student.log_q, soft.weight)
    sums[soft.place] += value.sum()
    return student.backward_(slope, tile.labels, labelled.weight)


def _soft_grad_(sums: list[Tensor], soft: Sequence[Weighted], tile: Tile) -> Tensor | None:
    """The gradient of the terms beside the cross-entropy; None if there is none."""
    grad = None
    for number, (place, term, weight) in enumerate(soft, start=1):
        # Each may overwrite what it is given; the last one gets the tile's own memory.
        given = tile if number == len(soft) else tile.copy()
        value, one = given.per_token_and_grad_(term, weight)
        sums[place] += value.sum()
        grad = one if grad is None else grad.add_(one)
    return grad


def _nll_and_probs(student_RV: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy, and the student's probabilities: its gradient but for −1."""
    q_RV = torch.softmax(student_RV, dim=-1)
    # The largest logit and the largest probability, at least 1/V, give the logsumexp without a pass
    # for the exponential of log q.
    logsumexp = student_RV.amax(-1) - q_RV.amax(-1).log()
    return (logsumexp - at_target(student_RV, labels)).sum(), q_RV
