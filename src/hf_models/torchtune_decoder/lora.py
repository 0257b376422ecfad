"""LoRA layers of a decoder: their effective head, and the model with LoRA merged in."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torchtune.modules import TiedLinear, TransformerDecoder
from torchtune.modules.peft import LoRALinear

from hf_models.precision import master
from hf_models.quantization import dequantized
from hf_models.torchtune_decoder.dora import DoRALinear, row_norms


def head_weight(model: TransformerDecoder) -> torch.Tensor:
    """The output weight ``[V, D]``, tied or not; with LoRA ``W + (alpha / rank)·B·A``, rows scaled
    by DoRA.

    Differentiable in whatever requires grad, for losses that project inside their own chunks. A
    trained head is given as it is kept, wider than what it is to be multiplied in.

    Raises:
        ValueError: If the head has LoRA with dropout, which no single weight expresses, or is of
            another kind.
    """
    output = model.output
    if isinstance(output, TiedLinear):
        return master(output.tied_module)
    if isinstance(output, LoRALinear):
        dropped = isinstance(output.dropout, nn.Dropout) and output.dropout.p > 0
        if dropped and not output.disabled:
            raise ValueError("lora_dropout must be 0 where apply_lora_to_output is true")
        return effective_weight(output)
    if not isinstance(output, nn.Linear):
        raise ValueError(f"an output head of type {type(output).__name__} is not supported")
    return master(output)


def effective_weight(layer: Any) -> torch.Tensor:
    """A linear layer's weight with its adapter, as long as that is on and drops nothing."""
    if not isinstance(layer, LoRALinear) or layer.disabled:
        return layer.weight
    update = layer.lora_b.weight @ layer.lora_a.weight
    weight = layer.weight + (layer.alpha / layer.rank) * update
    return weight * layer.row_scale()[:, None] if isinstance(layer, DoRALinear) else weight


def merged_state_dict(
    model: nn.Module, state_dict: Mapping[str, torch.Tensor] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None, dict[str, Any] | None]:
    """The model's weights with LoRA merged into them, and LoRA by itself; all on the CPU.

    The live model is not changed; weights without LoRA are shared with it if it is on the CPU.
    Weights in NF4 come out as the plain values that the live model computes with.

    Args:
        model: A decoder with or without torchtune's LoRA layers.
        state_dict: Its full weights where it does not hold them itself, that is if it is sharded.

    Returns:
        Merged weights, the adapter's tensors and PEFT's ``r``, ``lora_alpha``, ``lora_dropout``,
        ``target_modules`` (torchtune's names) and ``use_dora``; the last two are None without LoRA.
    """
    state = {name: tensor.detach() for name, tensor in (state_dict or model.state_dict()).items()}
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}
    if not layers:
        return {name: dequantized(tensor).cpu() for name, tensor in state.items()}, None, None
    layer = next(iter(layers.values()))
    adapter = {name: tensor.cpu() for name, tensor in state.items() if _is_lora(name)}
    merged = {name: tensor for name, tensor in state.items() if not _is_lora(name)}
    for name, weight in merged.items():
        weight = dequantized(weight)
        prefix = name.removesuffix("weight")
        lora_a = state.get(f"{prefix}lora_a.weight")
        if lora_a is not None:
            lora_b = state[f"{prefix}lora_b.weight"]
            magnitude = state.get(f"{prefix}magnitude")
            weight = _merge(weight, lora_a, lora_b, layer.alpha / layer.rank, magnitude)
        merged[name] = weight.cpu()
    config = {
        "r": layer.rank,
        "lora_alpha": layer.alpha,
        "lora_dropout": getattr(layer.dropout, "p", 0.0),
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
        "use_dora": isinstance(layer, DoRALinear),
    }
    return merged, adapter, config


def _is_lora(name: str) -> bool:
    return name.endswith((".lora_a.weight", ".lora_b.weight", ".magnitude"))


def _merge(
    weight: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    scale: float,
    magnitude: torch.Tensor | None,
) -> torch.Tensor:
    # In bf16 the product would be rounded before it is added, and again after.
    wide = torch.promote_types(weight.dtype, torch.float32)
    merged = weight.to(wide) + scale * (lora_b.to(wide) @ lora_a.to(wide))
    if magnitude is not None:
        merged = merged * (magnitude.to(wide) / row_norms(merged))[:, None]
    return merged.to(weight.dtype)
