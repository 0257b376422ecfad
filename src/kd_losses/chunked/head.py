"""How hidden states become logits."""

from typing import NamedTuple

from torch import Tensor


class Head(NamedTuple):
    """``logits = cap(scale · (h·Wᵀ + b))``, with ``cap(z) = softcap·tanh(z / softcap)`` if given.

    Attributes:
        weight: W ``[V, D]``.
        bias: b ``[V]``; None for none.
        scale: factor of the projected states, such as Cohere's and Granite's.
        softcap: bound of the logits, such as Gemma's; None for none.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
