"""Weights in 4 or 8 bits: a frozen teacher's after loading, a LoRA student's base on loading.

Only the linear layers inside the decoder layers are quantised. Embeddings, norms and the output
head keep their dtype: a loss projects with the head itself, outside of the model's forward.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torchao.core.config import AOBaseConfig
from torchao.dtypes.nf4tensor import NF4Tensor, to_nf4
from torchao.quantization import quantize_
from torchtune.modules.low_precision import FrozenNF4Linear
from torchtune.modules.peft import get_adapter_params

from hf_models.torchtune_decoder.dora import row_norms

NF4 = "nf4"
_BLOCK_SIZE, _SCALER_BLOCK_SIZE = 64, 256  # as in QLoRA


@torch.no_grad()
def quantize(
    model: nn.Module,
    config: AOBaseConfig | str,
    device: torch.device | str | None = None,
    stacks: Iterable[nn.ModuleList] | None = None,
) -> None:
    """Quantises a loaded, frozen model in place: each W becomes Q(W), used as dequantised.

    Bytes per weight: int8 1 plus a scale per row; NF4 ½ + 1/64 + 1/4096 (fp32; the last halves in
    bf16). NF4 is described in https://arxiv.org/abs/2305.14314.

    Args:
        model: With its weights and without LoRA.
        config: ``"nf4"``, or a weight-only config such as
            ``torchao.quantization.Int8WeightOnlyConfig()``.
        device: Where the model goes, one decoder layer after the other, so that the device never
            holds the whole of it unquantised. By default it stays where it is.
        stacks: The blocks to quantise; by default those of a decoder's ``layers``.

    Raises:
        ValueError: If the model has LoRA or is sharded, or ``config`` is of another kind or does
            not work for these layers or on this device.
    """
    _check(model, config)
    lists: list[Any] = [model.layers] if stacks is None else list(stacks)
    layers = [layer for blocks in lists for layer in blocks]
    for layer in layers:
        layer.to(device)
        try:
            _quantize_linears(layer, config)
        except Exception as err:  # torchao and its kernels raise almost anything
            why = " ".join(str(err).split()) or type(err).__name__
            raise ValueError(f"quantization {_name(config)}: {why}") from err
    model.to(device)  # the rest of it
    if all(type(one.weight) is nn.Parameter for layer in layers for one in _linears(layer)):
        raise ValueError(
            f"quantization {_name(config)}: it leaves every layer as it is; the widths of the "
            "layers may not be multiples of its group_size"
        )


def nf4_linear(
    in_dim: int, out_dim: int, bias: bool, with_lora: Callable[..., nn.Module] | None = None
) -> nn.Module:
    """torchtune's linear layer with a frozen NF4 weight, which load_state_dict quantises.

    Args:
        in_dim: Width of the input.
        out_dim: Width of the output.
        bias: Whether there is a bias; it is not quantised.
        with_lora: Makes torchtune's LoRA layer for one beside the frozen weight, if any.

    Raises:
        ValueError: If the weight cannot be cut into NF4's blocks; on loading, if it is sharded.
    """
    blocks = _blocks(in_dim * out_dim)
    linear: nn.Module
    if with_lora is None:
        linear = FrozenNF4Linear(in_dim, out_dim, bias, **blocks)
    else:
        linear = with_lora(in_dim, out_dim, use_bias=bias, quantize_base=True, **blocks)
    linear.register_load_state_dict_pre_hook(_quantize_arriving_weight)
    return linear


def dequantized(tensor: torch.Tensor) -> torch.Tensor:
    """A plain tensor with the values that an NF4 tensor stands for; others as they are."""
    return tensor.to(tensor.dtype) if isinstance(tensor, NF4Tensor) else tensor


def _check(model: nn.Module, config: AOBaseConfig | str) -> None:
    if config != NF4 and not isinstance(config, AOBaseConfig):
        raise ValueError(
            f"quantization {config!r}: use {NF4} or one of torchao's configs, such as "
            "{_component_: torchao.quantization.Int8WeightOnlyConfig}"
        )
    if get_adapter_params(model):
        raise ValueError(
            f"quantization {_name(config)}: the model has LoRA; for a quantised base set "
            "quantize_base: true of hf_models.lora_decoder"
        )
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise ValueError(
            f"quantization {_name(config)}: the model is sharded; only a whole copy per device "
            "can be quantised (teacher_sharding: none)"
        )


def _quantize_linears(layer: nn.Module, config: AOBaseConfig | str) -> None:
    if isinstance(config, AOBaseConfig):
        quantize_(layer, config)
        return
    for linear in _linears(layer):
        linear.weight = nn.Parameter(_nf4(linear.weight), requires_grad=False)


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def _quantize_arriving_weight(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any
) -> None:
    weight = state_dict.get(f"{prefix}weight")
    if isinstance(weight, DTensor):
        raise ValueError(
            "quantize_base: a base in NF4 cannot be sharded; run it on one device "
            "(kd_single_device) or set quantize_base: false"
        )
    if weight is not None and not isinstance(weight, NF4Tensor):
        state_dict[f"{prefix}weight"] = packed = _nf4(weight)
        magnitude = state_dict.get(f"{prefix}magnitude")
        if magnitude is not None:  # DoRA starts as the base that it has now
            norms = row_norms(dequantized(packed))
            state_dict[f"{prefix}magnitude"] = norms.to(magnitude.dtype)


def _nf4(weight: torch.Tensor) -> NF4Tensor:
    return to_nf4(weight.detach().contiguous(), **_blocks(weight.numel()))


def _blocks(numel: int) -> dict[str, int]:
    """NF4's blocks; those of the scales are smaller where the usual size does not divide them."""
    if numel % _BLOCK_SIZE:
        raise ValueError(
            f"{NF4}: a layer of {numel} weights cannot be cut into blocks of {_BLOCK_SIZE}"
        )
    scaler_block_size = math.gcd(numel // _BLOCK_SIZE, _SCALER_BLOCK_SIZE)
    return {"block_size": _BLOCK_SIZE, "scaler_block_size": scaler_block_size}


def _name(config: AOBaseConfig | str) -> str:
    return config if isinstance(config, str) else type(config).__name__
