"""Project a chunk of tokens, take its losses and its gradient, forget its logits, next chunk.

Shape suffixes: N tokens, C tokens of one chunk, D width, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kd_losses.chunked.chunk_size import tile_rows
from kd_losses.chunked.objective import Objective
from kd_losses.divergences.base import upcast


@dataclass
class Projection:
    """One model's way to its logits: hidden states ``[N, D]`` and an output head ``[≥ V, D]``.

    The head is cut to ``vocab_size`` ids.
    """

    hidden: Tensor
    head: Tensor
    vocab_size: int

    def new_buffer(self, rows: int) -> Tensor:
        """Allocate the logits of ``rows`` tokens, in fp32 where the product can return it."""
        dtype = torch.float32 if self._widens() else self.head.dtype
        return self.head.new_empty(rows, self.vocab_size, dtype=dtype)

    def logits_(self, positions: Tensor, buffer_CV: Tensor) -> Tensor:
        """Project the tokens at ``positions`` into the first rows of the buffer."""
        hidden_CD, out_CV = self.hidden[positions], buffer_CV[: len(positions)]
        head_DV = self.head[: self.vocab_size].t()
        if self._widens():
            return torch.mm(hidden_CD, head_DV, out_dtype=torch.float32, out=out_CV)
        return torch.mm(hidden_CD, head_DV, out=out_CV)

    def _widens(self) -> bool:
        # Tensor cores sum in fp32. Rounding that to bf16 only to upcast it again would cost a
        # divergence near 0 most of its digits; other devices offer nothing else.
        return (
            self.head.is_cuda
            and torch.version.hip is None
            and self.head.dtype in (torch.bfloat16, torch.float16)
        )


@dataclass
class Segment:
    """Positions that carry the same losses."""

    positions: Tensor
    with_ce: bool
    with_kd: bool


@dataclass
class Sums:
    """The summed losses, and the gradients that were asked for."""

    ce: Tensor
    kd: Tensor
    hidden_grad: Tensor | None
    head_grad: Tensor | None

    @property
    def with_grad(self) -> bool:
        """Whether any gradient was asked for."""
        return self.hidden_grad is not None or self.head_grad is not None


def split_positions(ce_mask: Tensor, kd_mask: Tensor) -> list[Segment]:
    """Group the positions by the losses they carry; those that carry none appear nowhere."""
    segments = [
        Segment((ce_mask & kd_mask).nonzero().squeeze(-1), with_ce=True, with_kd=True),
        Segment((ce_mask & ~kd_mask).nonzero().squeeze(-1), with_ce=True, with_kd=False),
        Segment((kd_mask & ~ce_mask).nonzero().squeeze(-1), with_ce=False, with_kd=True),
    ]
    return [segment for segment in segments if len(segment.positions)]


@dataclass
class ChunkedPass:
    """What a walk over segments of tokens needs."""

    student: Projection
    teacher: Projection | None
    labels: Tensor
    objective: Objective
    chunk_size: int

    def run(self, segments: list[Segment], hidden_grad: bool, head_grad: bool) -> Sums:
        """Walk over all segments, reusing one pair of logit buffers."""
        hidden_ND, head_VD = self.student.hidden, self.student.head
        zero = upcast(head_VD.new_zeros(()))
        sums = Sums(
            zero,
            zero.clone(),
            torch.zeros_like(hidden_ND) if hidden_grad else None,
            # fp32 even for a bf16 product: the gradient is a sum over chunks, and rounding every
            # partial sum would lose part of what later chunks add.
            torch.zeros_like(head_VD, dtype=zero.dtype) if head_grad else None,
        )
        chunks = [(s, positions) for s in segments for positions in self._split(s.positions)]
        rows = max((len(positions) for _, positions in chunks), default=0)
        student_buffer = self.student.new_buffer(rows)
        teacher_buffer = head_VD.new_empty(0)
        if self.teacher is not None:
            teacher_buffer = self.teacher.new_buffer(rows)
        for segment, positions in chunks:
            student_CV = self.student.logits_(positions, student_buffer)
            teacher_CV = None
            if segment.with_kd and self.teacher is not None:
                teacher_CV = self.teacher.logits_(positions, teacher_buffer)
            labels = self.labels[positions]
            self._add_losses_(sums, student_CV, teacher_CV, labels, segment.with_ce)
            self._add_gradients(sums, student_CV, positions)
        return sums

    def _split(self, positions: Tensor) -> tuple[Tensor, ...]:
        """Split into chunks of nearly equal lengths: a short last one would waste its products."""
        return positions.tensor_split(-(-len(positions) // self.chunk_size))

    def _add_losses_(
        self,
        sums: Sums,
        student_CV: Tensor,
        teacher_CV: Tensor | None,
        labels: Tensor,
        with_ce: bool,
    ) -> None:
        """Add the chunk's losses; overwrite its student logits with their gradient if needed."""
        rows = tile_rows(len(student_CV), student_CV.shape[1], student_CV.device)
        for start in range(0, len(student_CV), rows):
            tile = slice(start, start + rows)
            student_RV = student_CV[tile]
            student = upcast(student_RV)
            teacher = None if teacher_CV is None else teacher_CV[tile].to(student.dtype)
            tensors = student, teacher, labels[tile], with_ce
            if sums.with_grad:
                ce, kd, grad = self.objective.values_and_grad_(*tensors)
                if grad is not student_RV:
                    student_RV.copy_(grad)
            else:
                ce, kd = self.objective.values(*tensors)
            sums.ce += ce
            sums.kd += kd

    def _add_gradients(self, sums: Sums, logit_grad_CV: Tensor, positions: Tensor) -> None:
        """Carry the chunk's logit gradient through the student's head."""
        logit_grad_CV = logit_grad_CV.to(self.student.head.dtype)
        if sums.hidden_grad is not None:
            head_VD = self.student.head[: self.student.vocab_size]
            sums.hidden_grad[positions] = logit_grad_CV @ head_VD
        if sums.head_grad is not None:
            hidden_CD = self.student.hidden[positions]
            head_grad = sums.head_grad[: self.student.vocab_size]
            if head_grad.dtype == hidden_CD.dtype:
                head_grad.addmm_(logit_grad_CV.t(), hidden_CD)
            else:
                head_grad += logit_grad_CV.t() @ hidden_CD
