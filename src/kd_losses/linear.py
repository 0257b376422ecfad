"""Cross-entropy and a divergence straight from hidden states, without logits for all tokens.

Shape suffixes: N tokens, C tokens of one chunk, D width, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kd_losses.base import KDLoss
from kd_losses.checks import require
from kd_losses.chunk_size import chunk_rows
from kd_losses.chunked_pass import ChunkedPass, Projection, Segment, split_positions
from kd_losses.objective import Objective
from kd_losses.vocabulary import shared_vocab_size


class LinearKDOutput(NamedTuple):
    """Sums of one call; only `total` carries gradient.

    ``total`` is ``ce_weight * ce + kd_weight * kd``; ``ce`` and ``kd`` are the summed losses, 0 for a
    part that was skipped; ``num_tokens`` is the number of positions with a label.
    """

    total: Tensor
    ce: Tensor
    kd: Tensor
    num_tokens: Tensor


class LinearKDLoss(nn.Module):
    """``ce_weight · Σ CE + kd_weight · Σ divergence``, projected and differentiated chunk by chunk.

    Each chunk of tokens goes through both heads, its losses and its gradient are taken at once, and
    its logits are overwritten by the next chunk's: memory does not grow with the number of tokens.
    Matrix products run in the heads' type, everything between them in fp32.

    Args:
        kd_loss: any `KDLoss`; its ``ignore_index`` says which labels do not count.
        ce_weight: factor of the summed cross-entropy; may be set anew between calls.
        kd_weight: factor of the summed divergence; may be set anew between calls.
        chunk_size: tokens projected at a time; ``None`` picks it from vocabulary, device and memory.

    Raises:
        ValueError: if ``kd_loss`` is no `KDLoss` or ``chunk_size`` is below 1.
    """

    def __init__(
        self,
        kd_loss: KDLoss,
        ce_weight: float,
        kd_weight: float,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        require(isinstance(kd_loss, KDLoss), "kd_loss", type(kd_loss).__name__, "a kd_losses.KDLoss")
        require(chunk_size is None or chunk_size >= 1, "chunk_size", chunk_size, "null or at least 1")
        self.kd_loss = kd_loss
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.chunk_size = chunk_size

    def forward(
        self,
        student_hidden: Tensor,
        student_head: Tensor,
        teacher_hidden: Tensor | None,
        teacher_head: Tensor | None,
        labels: Tensor,
        kd_mask: Tensor | None = None,
        report_all: bool = False,
    ) -> LinearKDOutput:
        """Return the sums over one batch; a part whose weight is 0 is skipped and reported as 0.

        Args:
            student_hidden: ``[N, Ds]``, after the final norm.
            student_head: ``[V, Ds]``; receives a gradient only if it requires one.
            teacher_hidden: ``[N, Dt]``; may be ``None`` when the divergence is skipped.
            teacher_head: ``[Vt, Dt]``; may be ``None`` when the divergence is skipped.
            labels: ``[N]``, already shifted.
            kd_mask: ``[N]`` bool, the divergence's positions; default: those with a label.
            report_all: take the value of both parts even where the weight is 0.

        Raises:
            ValueError: if shapes, vocabularies or labels do not fit together.
        """
        labelled = labels != self.kd_loss.ignore_index
        with_ce = bool(self.ce_weight) or report_all
        with_kd = bool(self.kd_weight) or report_all
        student = _projection("student", student_hidden, student_head, labels)
        teacher, vocab_size = None, student.head_VD.shape[0]
        if with_kd:
            if teacher_hidden is None or teacher_head is None:
                raise ValueError("the divergence needs teacher_hidden and teacher_head")
            teacher = _projection(
                "teacher", teacher_hidden.detach(), teacher_head.detach(), labels
            )
            vocab_size = shared_vocab_size(vocab_size, teacher.head_VD.shape[0])
        _check_labels(labels[labelled], vocab_size)
        nowhere = torch.zeros_like(labelled)
        segments = split_positions(
            labelled if with_ce else nowhere,
            (labelled if kd_mask is None else kd_mask) if with_kd else nowhere,
        )
        chunked = ChunkedPass(
            student,
            teacher,
            labels,
            Objective(self.kd_loss, self.ce_weight, self.kd_weight),
            vocab_size,
            self.chunk_size or chunk_rows(vocab_size, student.head_VD),
        )
        # The matrix products already have autocast's type, and the loss arithmetic must keep fp32.
        with torch.autocast(student_hidden.device.type, enabled=False):
            total, ce, kd = _LinearKD.apply(
                student.hidden_ND, student.head_VD, chunked, segments, torch.is_grad_enabled()
            )
        return LinearKDOutput(total, ce, kd, labelled.sum())


class _LinearKD(torch.autograd.Function):
    """Takes the gradient in forward, where the logits are at hand; backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        student_hidden: Tensor,
        student_head: Tensor,
        chunked: ChunkedPass,
        segments: list[Segment],
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted = [grad_enabled and needed for needed in ctx.needs_input_grad[:2]]
        sums = chunked.run(segments, hidden_grad=wanted[0], head_grad=wanted[1])
        ctx.hidden_grad, ctx.head_grad = sums.hidden_grad, sums.head_grad
        ctx.head_dtype = student_head.dtype
        ctx.mark_non_differentiable(sums.ce, sums.kd)
        objective = chunked.objective
        return objective.ce_weight * sums.ce + objective.kd_weight * sums.kd, sums.ce, sums.kd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.hidden_grad is None and ctx.head_grad is None:
            raise RuntimeError("LinearKDLoss: backward runs once; its gradient is already handed on")
        # In place: a head's gradient is as large as the head.
        hidden_grad = None if ctx.hidden_grad is None else ctx.hidden_grad.mul_(grad_total)
        head_grad = None if ctx.head_grad is None else ctx.head_grad.mul_(grad_total)
        ctx.hidden_grad = ctx.head_grad = None
        return hidden_grad, head_grad if head_grad is None else head_grad.to(ctx.head_dtype), None, None, None


def _projection(side: str, hidden: Tensor, head: Tensor, labels: Tensor) -> Projection:
    """Check one model's shapes and give both operands the type of the matrix product."""
    if hidden.shape != (*labels.shape, head.shape[-1]) or hidden.dim() != 2 or head.dim() != 2:
        raise ValueError(
            f"{side}_hidden must be [N, D] and {side}_head [V, D] for labels [N], got "
            f"{list(hidden.shape)}, {list(head.shape)} and {list(labels.shape)}"
        )
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.dtype
    return Projection(hidden.to(dtype), head.to(dtype))


def _check_labels(labels: Tensor, vocab_size: int) -> None:
    # On an accelerator this waits for the device, as finding the positions to project does anyway.
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < vocab_size):
        raise ValueError(
            f"labels must lie in [0, {vocab_size}), the ids that both heads have, "
            f"got {int(labels.min())} to {int(labels.max())}"
        )
