"""Any number of terms on logits straight from hidden states, in one pass over chunks of tokens.

Shape suffixes: N tokens, V vocabulary, T terms.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kd_losses.chunked.chunk_size import chunk_rows
from kd_losses.chunked.chunked_pass import ChunkedPass, Segment, split_positions
from kd_losses.chunked.rows import Projected, Rows
from kd_losses.chunked.terms import RowTerm
from kd_losses.chunked.tile import Weighted
from kd_losses.functional import require, shared_vocab_size, upcast


class Scoped(NamedTuple):
    """A term, the positions that count for it, and its factor in the total.

    Attributes:
        term: what is summed.
        mask: ``[N]`` bool.
        weight: factor of the sum; of no meaning for what is only observed.
    """

    term: RowTerm
    mask: Tensor
    weight: float


class RowSums(NamedTuple):
    """Sums of one pass.

    Attributes:
        total: ``Σ weight · sum`` over the terms that are trained for; it alone carries a gradient.
        sums: every term's plain sum, in the order of the terms.
    """

    total: Tensor
    sums: tuple[Tensor, ...]


def chunked_sums(
    student: Projected,
    teacher: Rows | None,
    labels: Tensor,
    terms: Sequence[Scoped],
    *,
    ignore_index: int = -100,
    chunk_size: int | None = None,
) -> RowSums:
    """Return the terms' sums; each chunk of tokens is projected once for all of them.

    Each chunk goes through both heads, its sums and its gradient are taken at once, and the next
    chunk overwrites its logits: memory does not grow with the number of tokens. Matrix products run
    in the narrower type of hidden states and head (or autocast's), everything between them in fp32.
    A gradient has the type of what it belongs to: an fp32 head that was multiplied in bf16 gets the
    fp32 sum over chunks.

    Args:
        student: Rows of the student; gradients flow to what of it requires one.
        teacher: Rows of the teacher; may be ``None`` where no term reads them.
        labels: ``[N]``, already shifted.
        terms: What is summed where.
        ignore_index: Label of the positions without a target.
        chunk_size: Tokens projected at a time; ``None`` picks it by vocabulary, device and memory.

    Raises:
        ValueError: if shapes, vocabularies or labels do not fit together, or a term reads what the
            teacher's rows do not have.
    """
    _check_shapes(student, teacher, labels, terms)
    weight, bias = student.head.weight, student.head.bias
    own, theirs = student.ready(), None
    used = [one.term for one in terms if one.term.needs_teacher]
    if used:
        if teacher is None:
            raise ValueError(f"{used[0]} needs the teacher's rows")
        theirs = teacher.ready()
        for term in used:
            if missing := theirs.missing(term.reads):
                raise ValueError(f"{term} {missing}")
        if any(term.shares_vocabulary for term in used):
            shared = shared_vocab_size(own.vocab_size, theirs.vocab_size)
            own, theirs = own.cut(shared), theirs.cut(shared)
    used_labels = labels != ignore_index
    for one in terms:
        if one.term.on_labels:
            used_labels = used_labels | one.mask
    _check_labels(labels[used_labels], own.vocab_size)
    weighted = [Weighted(i, one.term, float(one.weight)) for i, one in enumerate(terms)]
    segments = split_positions([one.mask for one in terms], weighted)
    widest = max(side.vocab_size for side in (own, theirs) if side is not None)
    size = chunk_size or chunk_rows(widest, labels.device)
    chunked = ChunkedPass(own, theirs, labels, len(terms), size)
    # What is projected already has autocast's type, and the arithmetic must stay in fp32.
    with torch.autocast(labels.device.type, enabled=False):
        total, *sums = _Sums.apply(
            student.hidden, weight, bias, chunked, segments, weighted, torch.is_grad_enabled()
        )
    return RowSums(total, tuple(sums))


class _Sums(torch.autograd.Function):
    """Takes the gradient in forward, where the logits are at hand; backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        chunked: ChunkedPass,
        segments: list[Segment],
        terms: list[Weighted],
        grad_enabled: bool,
    ) -> tuple[Tensor, ...]:
        result = chunked.run(segments, [grad_enabled and one for one in ctx.needs_input_grad[:3]])
        weight_grad, bias_grad = result.weight_grad, result.bias_grad
        if weight_grad is not None:
            weight_grad = weight_grad.to(weight.dtype)
        if bias_grad is not None and bias is not None:
            bias_grad = bias_grad.to(bias.dtype)
        ctx.grads = result.hidden_grad, weight_grad, bias_grad
        ctx.mark_non_differentiable(*result.sums)
        total = upcast(weight.new_zeros(()))
        trained = [w * result.sums[i] for i, term, w in terms if not term.observed]
        total = sum(trained[1:], trained[0]) if trained else total
        return total, *result.sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("chunked_sums runs backward once: its gradient is handed on")
        # In place, because the gradient of a head is as large as the head.
        grads = (grad if grad is None else grad.mul_(grad_total) for grad in ctx.grads)
        hidden_grad, weight_grad, bias_grad = grads
        ctx.grads = None
        return hidden_grad, weight_grad, bias_grad, None, None, None, None


def _check_shapes(
    student: Projected, teacher: Rows | None, labels: Tensor, terms: Sequence[Scoped]
) -> None:
    sides = ("student", student), ("teacher", teacher)
    for name, rows in sides:
        if rows is not None and (labels.dim() != 1 or len(rows) != len(labels)):
            raise ValueError(
                f"{name} must have a row for each of the labels [N], got {len(rows)} rows and "
                f"labels {list(labels.shape)}"
            )
    for term, mask, _ in terms:
        fits = mask.dtype == torch.bool and mask.shape == labels.shape
        name = type(term).__name__
        require(fits, f"mask of {name}", list(mask.shape), f"bool {list(labels.shape)}")
    if sum(one.term.on_labels for one in terms) > 1:
        raise ValueError("there may be one cross-entropy only")


def _check_labels(labels: Tensor, vocab_size: int) -> None:
    # On an accelerator this waits for the device, but so does finding the positions to project.
    if labels.numel() and not (labels.min() >= 0 and labels.max() < vocab_size):
        raise ValueError(
            f"labels must lie in [0, {vocab_size}), the ids that both heads have, wherever they "
            f"count, got {labels.min()} to {labels.max()}"
        )
