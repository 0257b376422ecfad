"""Cross-entropy and a divergence straight from hidden states, without logits for all tokens.

Shape suffixes: N tokens, D width, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kd_losses.chunked.chunk_size import chunk_rows
from kd_losses.chunked.chunked_pass import ChunkedPass, Projection, Segment, split_positions
from kd_losses.chunked.objective import Objective
from kd_losses.divergences.base import KDLoss
from kd_losses.functional import require, shared_vocab_size


class LinearKDOutput(NamedTuple):
    """Sums of one call; only `total` carries gradient.

    ``total`` is ``ce_weight * ce + kd_weight * kd``; ``ce`` and ``kd`` are the summed losses, 0
    where a part was skipped; ``num_tokens`` is the number of positions with a label.
    """

    total: Tensor
    ce: Tensor
    kd: Tensor
    num_tokens: Tensor


class LinearKDLoss(nn.Module):
    """``ce_weight · Σ CE + kd_weight · Σ divergence``, projected and differentiated by chunks.

    Each chunk of tokens goes through both heads, its losses and its gradient are taken at once, and
    the next chunk overwrites its logits: memory does not grow with the number of tokens. Matrix
    products run in the narrower type of hidden states and head (or autocast's), everything between
    them in fp32. A gradient has the type of what it belongs to: an fp32 head that was multiplied in
    bf16 gets the fp32 sum over chunks.

    Args:
        kd_loss: any `KDLoss`; its ``ignore_index`` says which labels do not count.
        ce_weight: factor of the summed cross-entropy; may be set anew between calls.
        kd_weight: factor of the summed divergence; may be set anew between calls.
        chunk_size: tokens projected at a time; ``None`` picks it by vocabulary, device and memory.

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
        require(isinstance(kd_loss, KDLoss), "kd_loss", type(kd_loss).__name__, "a KDLoss")
        require(chunk_size is None or chunk_size > 0, "chunk_size", chunk_size, "null or above 0")
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
        with_ce = bool(self.ce_weight) or report_all
        with_kd = bool(self.kd_weight) or report_all
        student = _projection("student", student_hidden, student_head, labels)
        teacher = None
        if with_kd:
            if teacher_hidden is None or teacher_head is None:
                raise ValueError("the divergence needs teacher_hidden and teacher_head")
            teacher = _projection("teacher", teacher_hidden, teacher_head, labels)
            if self.kd_loss.shares_vocabulary:
                shared = shared_vocab_size(student.vocab_size, teacher.vocab_size)
                student.vocab_size = teacher.vocab_size = shared
        labelled = labels != self.kd_loss.ignore_index
        if kd_mask is not None and (kd_mask.dtype != torch.bool or kd_mask.shape != labels.shape):
            raise ValueError(
                f"kd_mask must be bool and {list(labels.shape)} like labels, "
                f"got {kd_mask.dtype} and {list(kd_mask.shape)}"
            )
        _check_labels(labels[labelled], student.vocab_size)
        nowhere = torch.zeros_like(labelled)
        segments = split_positions(
            labelled if with_ce else nowhere,
            (labelled if kd_mask is None else kd_mask) if with_kd else nowhere,
        )
        widest = max(side.vocab_size for side in (student, teacher) if side is not None)
        chunked = ChunkedPass(
            student,
            teacher,
            labels,
            Objective(self.kd_loss, float(self.ce_weight), float(self.kd_weight)),
            self.chunk_size or chunk_rows(widest, labels.device),
        )
        # What is projected already has autocast's type, and the arithmetic must stay in fp32.
        with torch.autocast(labels.device.type, enabled=False):
            total, ce, kd = _LinearKD.apply(
                student_hidden, student_head, chunked, segments, torch.is_grad_enabled()
            )
        return LinearKDOutput(total, ce, kd, labelled.sum())

    def extra_repr(self) -> str:
        """Show the weights in ``print(loss)``."""
        return f"ce_weight={self.ce_weight}, kd_weight={self.kd_weight}"


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
        need_hidden, need_head = ctx.needs_input_grad[:2]
        sums = chunked.run(segments, grad_enabled and need_hidden, grad_enabled and need_head)
        head_grad = sums.head_grad
        if head_grad is not None:
            head_grad = head_grad.to(student_head.dtype)
        ctx.grads = sums.hidden_grad, head_grad
        ctx.mark_non_differentiable(sums.ce, sums.kd)
        weights = chunked.objective
        return weights.ce_weight * sums.ce + weights.kd_weight * sums.kd, sums.ce, sums.kd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("LinearKDLoss runs backward once: its gradient is handed on")
        # In place, because the gradient of a head is as large as the head.
        hidden_grad, head_grad = (g if g is None else g.mul_(grad_total) for g in ctx.grads)
        ctx.grads = None
        return hidden_grad, head_grad, None, None, None


def _projection(side: str, hidden: Tensor, head: Tensor, labels: Tensor) -> Projection:
    """Check one model's shapes and give both operands the type of the matrix product."""
    if labels.dim() != 1 or head.dim() != 2 or hidden.shape != (len(labels), head.shape[1]):
        raise ValueError(
            f"{side}_hidden must be [N, D] and {side}_head [V, D] for labels [N], got "
            f"{list(hidden.shape)}, {list(head.shape)} and {list(labels.shape)}"
        )
    device = hidden.device.type
    dtype = min(head.dtype, hidden.dtype, key=lambda one: one.itemsize)
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    hidden, head = hidden.detach(), head.detach()  # the gradient is taken by hand
    return Projection(hidden.to(dtype), head.to(dtype), len(head))


def _check_labels(labels: Tensor, vocab_size: int) -> None:
    # On an accelerator this waits for the device, but so does finding the positions to project.
    if labels.numel() and not (labels.min() >= 0 and labels.max() < vocab_size):
        raise ValueError(
            f"labels must lie in [0, {vocab_size}), the ids that both heads have, "
            f"got {labels.min()} to {labels.max()}"
        )
