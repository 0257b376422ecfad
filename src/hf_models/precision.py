"""Weights that are kept and updated in fp32, and computed with in another dtype.

A bf16 weight has 8 bits: an update below 1/512 of it is lost in the rounding, and at the learning
rates of fine-tuning nearly all are. So what is trained stays in fp32, its master; so do, with it,
gradients and optimizer state. What is frozen needs no master.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class _CastOnUse:
    """Marks a layer whose masters read as ``compute_dtype``."""

    compute_dtype: torch.dtype


def keep_masters(model: nn.Module, dtype: torch.dtype) -> None:
    """Turn the parameters that require grad into fp32 masters, which layers read in ``dtype``.

    ``layer.weight`` is then a copy, made at each use, whose gradient arrives at the master in
    fp32. Parameters, their names and the state dict are the masters'. This is what FSDP2's mixed
    precision does to a layer that it gathers, and works without it: with checkpointed, compiled
    and adapted layers alike. (Autocast would need the same care for whatever is no matrix product,
    and would leave the residual stream in fp32; torch's parametrizations rename the weights.)

    Nothing is done where ``dtype`` is fp32.

    Args:
        model: A decoder, on the meta device or not.
        dtype: What the trained layers compute in.
    """
    if dtype == torch.float32:
        return
    for module in model.modules():
        names = [n for n, p in module.named_parameters(recurse=False) if p.requires_grad]
        for name in names:
            parameter = module._parameters[name]
            assert parameter is not None
            parameter.data = parameter.data.float()
        if names:
            kind: Any = type(module)
            module.__class__ = _casting(kind, tuple(names), dtype)


def master(module: nn.Module, name: str = "weight") -> Tensor:
    """A layer's parameter as it is kept, where ``getattr`` may give a copy in another dtype."""
    parameter = module._parameters[name]
    assert parameter is not None
    return parameter


def compute_dtype(model: nn.Module) -> torch.dtype | None:
    """What a model's masters are computed with in; None for a model without them."""
    marked = (module.compute_dtype for module in model.modules() if isinstance(module, _CastOnUse))
    return next(marked, None)


def gather_dtype(model: nn.Module) -> torch.dtype | None:
    """What a sharded model's weights are gathered in; None: as they are kept.

    A model that is trained as a whole is gathered in the dtype that it computes in, half of the
    traffic. An adapter is small: gathered as it is kept, it gives what it gives on one device,
    where DoRA's magnitudes are not rounded.
    """
    whole = all(parameter.requires_grad for parameter in model.parameters())
    return compute_dtype(model) if whole else None


@cache
def _casting(kind: type, names: tuple[str, ...], dtype: torch.dtype) -> type:
    """A subclass of a layer's type that reads its parameters ``names`` in ``dtype``."""
    members: dict[str, Any] = {name: _reader(name, dtype) for name in names}
    if issubclass(kind, nn.Embedding) and kind.forward is nn.Embedding.forward:
        # Rows are cast after they are looked up: the same values, without a copy of all rows, and
        # what a frequent token's row gets from many positions is summed in fp32.
        def forward(self: nn.Embedding, tokens: Tensor) -> Tensor:
            return F.embedding(tokens, master(self), self.padding_idx).to(dtype)

        members["forward"] = forward
    return type(kind.__name__, (kind, _CastOnUse), members | {"compute_dtype": dtype})


def _reader(name: str, dtype: torch.dtype) -> property:
    def read(self: nn.Module) -> Tensor:
        kept = master(self, name)
        # A share is nothing to compute with: it is FSDP that asks for it, by this name too.
        return kept if isinstance(kept, DTensor) else kept.to(dtype)

    return property(read)
