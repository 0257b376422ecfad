"""Reading several texts on a CPU without a single product for padding.

TextRow stand behind one another in one row of tokens, whatever rows they came in; only attention
looks at each by itself. That takes the time of the tokens that are there, and no mask. And a text's
numbers do not depend on its company: every other layer treats positions one by one. (Products of
fewer than 16 rows are summed in another order, so there are never fewer; with several threads some
are of up to 200.)

Shapes: B rows, S positions, N positions of all texts, padded to a multiple of 16, H heads, D width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchtune.modules import MultiHeadAttention

_UNIT = 16  # rows of a product; also the fp32 numbers of a vector register


@dataclass(frozen=True, eq=False)
class TextRow:
    """TextRow behind one another, also what attention takes for its mask.

    Attributes:
        lengths: Of each, the last one being padding if there is any.
        index: [tokens] int64, where they were among the B·S positions.
        shape: (B, S).
    """

    lengths: list[int]
    index: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, inputs: Mapping[str, Tensor]) -> "TextRow":
        """Those of packed rows (``documents``) or of rows of one text each (``lengths``)."""
        tokens = inputs["tokens"]
        documents = inputs.get("documents")
        if documents is None:
            lengths = inputs["lengths"]
            real = torch.arange(tokens.shape[1]) < lengths[:, None]
        else:
            real = documents >= 0
            rows = torch.arange(len(tokens))[:, None] * (documents.max() + 1)
            lengths = (documents + rows)[real].unique_consecutive(return_counts=True)[1]
        index = real.flatten().nonzero().squeeze(-1)
        own = [length for length in lengths.tolist() if length]
        rest = max(_UNIT, -(-len(index) // _UNIT) * _UNIT) - len(index)
        return cls([*own, rest] if rest else own, index, (tokens.shape[0], tokens.shape[1]))

    def inputs(self, tokens: Tensor) -> dict[str, Any]:
        """A decoder's keyword arguments for all of them in one row."""
        row = tokens.new_zeros(sum(self.lengths))
        row[: len(self.index)] = tokens.flatten()[self.index]
        positions = torch.cat([torch.arange(length) for length in self.lengths])
        return {"tokens": row[None], "input_pos": positions[None], "mask": self}

    def back(self, output: Tensor) -> Tensor:
        """An output [1, N, D] at the positions where the texts were, [B, S, D]; 0 elsewhere."""
        room = output.new_zeros(self.shape[0] * self.shape[1], output.shape[-1])
        return room.index_copy(0, self.index, output[0, : len(self.index)]).view(*self.shape, -1)


def applies(module: nn.Module, inputs: Mapping[str, Tensor]) -> bool:
    """Whether texts are read in that way: on a CPU, where no block is compiled for other shapes."""
    known = "documents" in inputs or "lengths" in inputs
    layers: Any = module.layers
    compiled = any(layer._compiled_call_impl is not None for layer in layers)
    return known and inputs["tokens"].device.type == "cpu" and not compiled


def attend_by_text(module: nn.Module) -> None:
    """Let a decoder's attention layers take `TextRow` for a mask, beside all they took before."""
    for layer in module.modules():
        if isinstance(layer, MultiHeadAttention):
            layer._attention_call = _ByText(layer._attention_call)


class _ByText:
    """torchtune's attention call, with one call for each text."""

    def __init__(self, call: Callable[..., Tensor]) -> None:
        self._call = call

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, mask: Any, dropout_p: float, is_causal: bool
    ) -> Tensor:
        if not isinstance(mask, TextRow):
            return self._call(q, k, v, mask=mask, dropout_p=dropout_p, is_causal=is_causal)
        sides = (side.split(mask.lengths, dim=2) for side in (q, k, v))
        # Heads come last in memory, as the output layer wants them.
        parts = [
            F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p, is_causal=True)
            for query, key, value in zip(*sides, strict=True)
        ]
        return torch.cat([part.transpose(1, 2) for part in parts], dim=1).transpose(1, 2)
