"""The tensors of LoRA layers: which they are, how they start, how they merge, PEFT's names."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

ADAPTER = "default"  # PEFT's name of the only one
_MARKS = (f".lora_A.{ADAPTER}.", f".lora_B.{ADAPTER}.")


def has_lora(module: nn.Module) -> bool:
    """Whether it is one of PEFT's LoRA layers."""
    return hasattr(module, "lora_A") and hasattr(module, "base_layer")


def is_adapter(name: str) -> bool:
    """Whether a tensor of the state dict is LoRA's."""
    return any(mark in name for mark in _MARKS)


def plain_name(name: str) -> str:
    """A tensor's name in the model without LoRA."""
    return name.replace(".base_layer.", ".")


def start(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The usual start: A as torch initialises a linear layer, B at 0."""
    tensor = torch.zeros(shape, dtype=dtype)
    return tensor if ".lora_B." in name else nn.init.kaiming_uniform_(tensor, a=math.sqrt(5))


def merge(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The plain weights of a state dict, with W + (alpha / r)·B·A where there is LoRA."""
    layers = {_unwrapped(name): one for name, one in module.named_modules() if has_lora(one)}
    merged = {}
    for name, tensor in state.items():
        if is_adapter(name):
            continue
        layer = name.removesuffix(".base_layer.weight")
        if layer != name and layer in layers:
            tensor = _merged_weight(layers[layer], tensor, layer, state)
        merged[plain_name(name)] = tensor
    return merged


def _merged_weight(layer: Any, weight: Tensor, name: str, state: Mapping[str, Tensor]) -> Tensor:
    # In bf16 the product would be rounded before it is added, and again after.
    wide = torch.promote_types(weight.dtype, torch.float32)
    a, b = (state[f"{name}.lora_{one}.{ADAPTER}.weight"].to(wide) for one in "AB")
    update = layer.scaling[ADAPTER] * (b @ a)
    return (weight.to(wide) + (update.T if layer.fan_in_fan_out else update)).to(weight.dtype)


def _unwrapped(name: str) -> str:
    return name.replace("_checkpoint_wrapped_module.", "")


def peft_tensors(state: Mapping[str, Tensor], saved: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of an adapter under PEFT's names: LoRA, and modules that are trained whole."""
    named = {name.replace(f".{ADAPTER}.", "."): t for name, t in state.items() if is_adapter(name)}
    whole = tuple(f"{module}." for module in saved)
    if whole:
        named |= {plain_name(n): t for n, t in state.items() if n.startswith(whole)}
    return {f"base_model.model.{name}": tensor for name, tensor in named.items()}
