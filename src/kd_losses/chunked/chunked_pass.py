"""Project a chunk of tokens, take its sums and its gradient, forget its logits, next chunk.

Shape suffixes: N tokens, C tokens of one chunk, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kd_losses.chunked.chunk_size import tile_rows
from kd_losses.chunked.rows import Projected, Rows
from kd_losses.chunked.sides import Chunk
from kd_losses.chunked.tile import Tile, Weighted, add_sums, add_sums_and_grad_
from kd_losses.functional import upcast


@dataclass
class Segment:
    """Positions that carry the same terms."""

    positions: Tensor
    terms: list[Weighted]

    @property
    def needs_teacher(self) -> bool:
        """Whether any term reads the teacher's logits."""
        return any(one.term.needs_teacher for one in self.terms)

    @property
    def trains(self) -> bool:
        """Whether any term has a gradient."""
        return any(not one.term.observed for one in self.terms)


@dataclass
class PassResult:
    """The sums in the order of the terms, and the gradients that were asked for."""

    sums: list[Tensor]
    hidden_grad: Tensor | None = None
    weight_grad: Tensor | None = None
    bias_grad: Tensor | None = None

    @property
    def with_grad(self) -> bool:
        """Whether any gradient was asked for."""
        grads = self.hidden_grad, self.weight_grad, self.bias_grad
        return any(grad is not None for grad in grads)


def split_positions(masks: Sequence[Tensor], terms: Sequence[Weighted]) -> list[Segment]:
    """Group the positions by the terms they carry; those that carry none appear nowhere.

    Those that carry earlier terms come first.
    """
    if not terms:
        return []
    codes = torch.zeros_like(masks[0], dtype=torch.int64)
    for mask in masks:
        codes = 2 * codes + mask
    present = sorted(codes.unique().tolist(), reverse=True)
    last = len(terms) - 1
    return [
        Segment(
            (codes == code).nonzero().squeeze(-1),
            [term for i, term in enumerate(terms) if code >> (last - i) & 1],
        )
        for code in present
        if code
    ]


@dataclass
class ChunkedPass:
    """What a walk over segments of tokens needs."""

    student: Projected
    teacher: Rows | None
    labels: Tensor
    num_terms: int
    chunk_size: int

    def run(self, segments: list[Segment], needed: Sequence[bool]) -> PassResult:
        """Walk over all segments, reusing one pair of logit buffers.

        Args:
            segments: What to walk over.
            needed: Whether the gradients of hidden states, the head's weight and its bias are.
        """
        result = self._start(needed)
        chunks = [(s, positions) for s in segments for positions in self._split(s.positions)]
        rows = max((len(positions) for _, positions in chunks), default=0)
        student_buffer = self.student.new_buffer(rows)
        teacher_buffer = self.labels.new_empty(0)
        if self.teacher is not None:
            teacher_buffer = self.teacher.new_buffer(rows)
        for segment, positions in chunks:
            student_CV = self.student.product_(positions, student_buffer)
            teacher = None
            if segment.needs_teacher and self.teacher is not None:
                teacher = self.teacher.chunk_(positions, teacher_buffer)
            with_grad = result.with_grad and segment.trains
            labels = self.labels[positions]
            grad = self._add_sums_(result, segment.terms, student_CV, teacher, labels, with_grad)
            if with_grad:
                self._add_gradients(result, grad, positions)
        return result

    def _start(self, needed: Sequence[bool]) -> PassResult:
        hidden_ND, head = self.student.hidden, self.student.head
        zero = upcast(head.weight.new_zeros(()))
        sums = [zero.clone() for _ in range(self.num_terms)]
        # fp32 even for a bf16 product: the gradient is a sum over chunks, and rounding every
        # partial sum would lose part of what later chunks add.
        return PassResult(
            sums,
            torch.zeros_like(hidden_ND) if needed[0] else None,
            torch.zeros_like(head.weight, dtype=zero.dtype) if needed[1] else None,
            zero.new_zeros(len(head.weight)) if needed[2] else None,
        )

    def _split(self, positions: Tensor) -> tuple[Tensor, ...]:
        """Split into chunks of nearly equal lengths: a short last one would waste its products."""
        return positions.tensor_split(-(-len(positions) // self.chunk_size))

    def _add_sums_(
        self,
        result: PassResult,
        terms: list[Weighted],
        student_CV: Tensor,
        teacher: Chunk | None,
        labels: Tensor,
        with_grad: bool,
    ) -> Tensor:
        """Add the chunk's sums; return the gradient of its student products if needed.

        It lies in the products' memory, unless the chunk is one tile that has made it elsewhere.
        """
        rows = tile_rows(len(student_CV), student_CV.shape[1], student_CV.device)
        for start in range(0, len(student_CV), rows):
            part = slice(start, start + rows)
            student_RV = student_CV[part]
            student = self.student.finish_(upcast(student_RV))
            side = None if teacher is None else teacher.tile(part, student.dtype)
            tile = Tile(student, side, labels[part])
            if not with_grad:
                add_sums(result.sums, terms, tile)
                continue
            slope = self.student.slope(student)
            grad = add_sums_and_grad_(result.sums, terms, tile, self.student.head.weight.dtype)
            if slope is not None:
                grad.mul_(slope)
            if rows >= len(student_CV):
                return grad
            if grad is not student_RV:
                student_RV.copy_(grad)
        return student_CV

    def _add_gradients(self, result: PassResult, grad_CV: Tensor, positions: Tensor) -> None:
        """Carry the chunk's gradient through the student's head."""
        head, size = self.student.head, self.student.vocab_size
        if result.bias_grad is not None:
            result.bias_grad[:size] += grad_CV.sum(0, dtype=result.bias_grad.dtype)
        grad_CV = grad_CV.to(head.weight.dtype)
        if result.hidden_grad is not None:
            result.hidden_grad[positions] = grad_CV @ head.weight[:size]
        if result.weight_grad is not None:
            hidden_CD = self.student.hidden[positions]
            weight_grad = result.weight_grad[:size]
            if weight_grad.dtype == hidden_CD.dtype:
                weight_grad.addmm_(grad_CV.t(), hidden_CD)
            else:
                weight_grad += grad_CV.t() @ hidden_CD
