"""Cross-entropy and a divergence straight from hidden states, without logits for all tokens.

Shape suffixes: N tokens, D width, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from kd_losses.chunked.head import Head
from kd_losses.chunked.rows import Projected
from kd_losses.chunked.sums import Scoped, chunked_sums
from kd_losses.chunked.terms import CrossEntropy, Divergence
from kd_losses.divergences.base import KDLoss
from kd_losses.functional import require


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

    See `chunked_sums` for memory and types.

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
        student_head: Tensor | Head,
        teacher_hidden: Tensor | None,
        teacher_head: Tensor | Head | None,
        labels: Tensor,
        kd_mask: Tensor | None = None,
        report_all: bool = False,
    ) -> LinearKDOutput:
        """Return the sums over one batch; a part whose weight is 0 is skipped and reported as 0.

        Args:
            student_hidden: ``[N, Ds]``, after the final norm.
            student_head: ``[V, Ds]`` or a `Head`; receives a gradient only if it requires one.
            teacher_hidden: ``[N, Dt]``; may be ``None`` when the divergence is skipped.
            teacher_head: ``[Vt, Dt]`` or a `Head`; may be ``None`` when the divergence is skipped.
            labels: ``[N]``, already shifted.
            kd_mask: ``[N]`` bool, the divergence's positions; default: those with a label.
            report_all: take the value of both parts even where the weight is 0.

        Raises:
            ValueError: if shapes, vocabularies or labels do not fit together.
        """
        labelled = labels != self.kd_loss.ignore_index
        student, teacher = _rows("student", student_hidden, student_head, labels), None
        terms = {}
        if self.ce_weight or report_all:
            terms["ce"] = Scoped(CrossEntropy(), labelled, self.ce_weight)
        if self.kd_weight or report_all:
            if teacher_hidden is None or teacher_head is None:
                raise ValueError("the divergence needs teacher_hidden and teacher_head")
            teacher = _rows("teacher", teacher_hidden, teacher_head, labels)
            mask = labelled if kd_mask is None else kd_mask
            if mask.dtype != torch.bool or mask.shape != labels.shape:
                raise ValueError(
                    f"kd_mask must be bool and {list(labels.shape)} like labels, "
                    f"got {mask.dtype} and {list(mask.shape)}"
                )
            terms["kd"] = Scoped(Divergence(self.kd_loss), mask, self.kd_weight)
        result = chunked_sums(
            student,
            teacher,
            labels,
            list(terms.values()),
            ignore_index=self.kd_loss.ignore_index,
            chunk_size=self.chunk_size,
        )
        sums = dict(zip(terms, result.sums, strict=True))
        zero = torch.zeros_like(result.total)
        ce, kd = (sums.get(name, zero) for name in ("ce", "kd"))
        return LinearKDOutput(result.total, ce, kd, labelled.sum())

    def extra_repr(self) -> str:
        """Show the weights in ``print(loss)``."""
        return f"ce_weight={self.ce_weight}, kd_weight={self.kd_weight}"


def _rows(side: str, hidden: Tensor, head: Tensor | Head, labels: Tensor) -> Projected:
    head = head if isinstance(head, Head) else Head(head)
    shape, weight = hidden.shape, head.weight
    if labels.dim() != 1 or weight.dim() != 2 or shape != (len(labels), weight.shape[1]):
        raise ValueError(
            f"{side}_hidden must be [N, D] and {side}_head [V, D] for labels [N], got "
            f"{list(shape)}, {list(weight.shape)} and {list(labels.shape)}"
        )
    return Projected(hidden, head)
