"""How hidden states become logits."""

from typing import NamedTuple

from torch import Tensor

from kd_losses.divergences.base import upcast


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

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits ``[..., V]`` of few hidden states ``[..., D]``, in fp32 or wider."""
        dtype = min(self.weight.dtype, hidden.dtype, key=lambda one: one.itemsize)
        logits = upcast(hidden.to(dtype) @ self.weight.to(dtype).T)
        if self.bias is not None:
            logits = logits + self.bias
        logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()
