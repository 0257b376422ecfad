"""What the chunked pass reads: rows of logits, made as they are needed.

Shape suffixes: N tokens, C tokens of one chunk, R rows of a tile, D width, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from kd_losses.chunked.chunk_size import tile_rows
from kd_losses.chunked.head import Head
from kd_losses.chunked.sides import Chunk, Dense
from kd_losses.functional import upcast
from kd_losses.reads import Reads


class Rows(Protocol):
    """One model's word on N tokens."""

    @property
    def vocab_size(self) -> int:
        """Return the ids of a row."""

    def __len__(self) -> int:
        """Return N."""

    def ready(self) -> Self:
        """Return the same without gradients, in the types of the matrix product."""

    def cut(self, vocab_size: int) -> Self:
        """Return the same with the first ``vocab_size`` ids only."""

    def missing(self, reads: Reads) -> str:
        """Return what a loss reads that they lack and what to do about it; "" if nothing."""

    def new_buffer(self, rows: int) -> Tensor:
        """Allocate what `chunk_` needs for ``rows`` tokens."""

    def chunk_(self, positions: Tensor, buffer: Tensor) -> Chunk:
        """Return what the tokens at ``positions`` say; it may lie in the buffer."""


class LogitRows(Rows, Protocol):
    """Rows that are logits."""

    def product_(self, positions: Tensor, buffer_CV: Tensor) -> Tensor:
        """Put what becomes the logits of the tokens at ``positions`` into the buffer's first rows.

        Rows that start as something else than a product may put the logits there at once.
        """

    def finish_(self, product_RV: Tensor) -> Tensor:
        """Turn a tile of that, in the type of the loss arithmetic, into logits; in place."""


class LogitChunk(NamedTuple):
    """A chunk of logits that are finished tile by tile."""

    rows: LogitRows
    products: Tensor

    def tile(self, part: slice, dtype: torch.dtype) -> Dense:
        """Return logits, in the products' memory where that has their type."""
        return Dense(self.rows.finish_(self.products[part].to(dtype)))


def finished_tiles(
    rows: LogitRows, positions: Tensor, buffer_CV: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the logits ``[R, V]`` at ``positions``, and which of these they are, tile by tile.

    They are in fp32 or wider, and may lie in the buffer. No positions are one empty tile.
    """
    product_CV = rows.product_(positions, buffer_CV)
    size = tile_rows(len(product_CV), rows.vocab_size, product_CV.device)
    for start in range(0, max(len(product_CV), 1), size):
        part = slice(start, start + size)
        yield part, rows.finish_(upcast(product_CV[part]))


@dataclass(frozen=True)
class Projected:
    """Rows that are hidden states ``[N, D]`` sent through a head.

    Args:
        hidden: ``[N, D]``, after the final norm.
        head: how they become logits.
        size: ids to keep; None for all that the head has.
    """

    hidden: Tensor
    head: Head
    size: int | None = None

    def __post_init__(self) -> None:
        weight, bias = self.head.weight, self.head.bias
        fits = self.hidden.dim() == 2 and weight.dim() == 2
        if not fits or self.hidden.shape[1] != weight.shape[1]:
            raise ValueError(
                f"hidden must be [N, D] and head [V, D], got {list(self.hidden.shape)} and "
                f"{list(weight.shape)}"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"head.bias must be [{len(weight)}], got {list(bias.shape)}")

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def vocab_size(self) -> int:
        """Ids of a row."""
        return len(self.head.weight) if self.size is None else self.size

    def ready(self) -> "Projected":
        """Return it in the narrower type of hidden states and head, or autocast's."""
        hidden, weight = self.hidden.detach(), self.head.weight.detach()
        dtype = min(weight.dtype, hidden.dtype, key=lambda one: one.itemsize)
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
        bias = None if self.head.bias is None else self.head.bias.detach()
        head = self.head._replace(weight=weight.to(dtype), bias=bias)
        return replace(self, hidden=hidden.to(dtype), head=head)

    def cut(self, vocab_size: int) -> "Projected":
        """Return it with the first ``vocab_size`` ids only."""
        return replace(self, size=vocab_size)

    def missing(self, reads: Reads) -> str:
        """Return that nothing is missing."""
        return ""

    def new_buffer(self, rows: int) -> Tensor:
        """Allocate room for the products, in fp32 where the matrix product can return it."""
        weight = self.head.weight
        dtype = torch.float32 if self._widens() else weight.dtype
        return weight.new_empty(rows, self.vocab_size, dtype=dtype)

    def chunk_(self, positions: Tensor, buffer: Tensor) -> LogitChunk:
        """Multiply, and finish tile by tile."""
        return LogitChunk(self, self.product_(positions, buffer))

    def product_(self, positions: Tensor, buffer_CV: Tensor) -> Tensor:
        """Multiply the tokens at ``positions`` into the first rows of the buffer."""
        hidden_CD, out_CV = self.hidden[positions], buffer_CV[: len(positions)]
        weight_DV = self.head.weight[: self.vocab_size].t()
        if self._widens():
            return torch.mm(hidden_CD, weight_DV, out_dtype=torch.float32, out=out_CV)
        return torch.mm(hidden_CD, weight_DV, out=out_CV)

    def finish_(self, product_RV: Tensor) -> Tensor:
        """Add the bias, scale, and cap."""
        return self.head.finish_(product_RV)

    def slope(self, logits_RV: Tensor) -> Tensor | float | None:
        """Return ∂logit/∂product at these logits; None where it is 1."""
        _, _, scale, softcap = self.head
        if softcap is None:
            return None if scale == 1 else scale
        return (logits_RV / softcap).square_().neg_().add_(1).mul_(scale)

    def _widens(self) -> bool:
        # Tensor cores sum in fp32. Rounding that to bf16 only to upcast it again would cost a
        # divergence near 0 most of its digits; other devices offer nothing else.
        weight = self.head.weight
        return (
            weight.is_cuda
            and torch.version.hip is None
            and weight.dtype in (torch.bfloat16, torch.float16)
        )
