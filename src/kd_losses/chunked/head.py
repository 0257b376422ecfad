"""How hidden states become logits."""

from typing import NamedTuple

import torch
from torch import Tensor

from kd_losses.functional import upcast


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

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits ``[..., V]`` of few hidden states ``[..., D]``, in fp32 or wider,
        without a gradient.
        """
        dtype = min(self.weight.dtype, hidden.dtype, key=lambda one: one.itemsize)
        return self.finish_(upcast(hidden.to(dtype) @ self.weight.to(dtype).T))

    def finish_(self, product: Tensor) -> Tensor:
        """Add the bias to products ``[..., V']`` of the first V' ids, scale, and cap; in place."""
        if self.bias is not None:
            product.add_(self.bias[: product.shape[-1]])
        if self.scale != 1:
            product.mul_(self.scale)
        if self.softcap is not None:
            product.div_(self.softcap).tanh_().mul_(self.softcap)
        return product
