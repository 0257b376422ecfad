"""LoRA by PEFT: put into a model, started, merged, and named as PEFT's files name it."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_models.nearest import nearest

if TYPE_CHECKING:
    from hf_models.transformers_model.model import TransformersModel

ALL_LINEAR = "all-linear"
# PEFT's own class for SEQ_2_SEQ_LM looks for a method that transformers 5 has no more; without a
# type it takes its general class, which works.
_TASK_TYPES = {"causal_lm": "CAUSAL_LM", "sequence_classification": "SEQ_CLS"}
_ADAPTER = "default"
_MARKS = (f".lora_A.{_ADAPTER}.", f".lora_B.{_ADAPTER}.")


def add_lora(
    model: "TransformersModel",
    targets: str | Sequence[str],
    rank: int,
    alpha: float,
    dropout: float,
) -> None:
    """Put LoRA layers into a model on the meta device.

    Raises:
        ValueError: If a target is no linear layer, or a number is out of range.
    """
    names = _resolve(model, targets)
    if rank < 1 or not 0 <= dropout < 1:
        raise ValueError(
            f"lora_rank is {rank} and lora_dropout {dropout}; use a rank of at least 1 and a "
            "dropout of at least 0 and below 1"
        )
    if model.head_path in names and dropout > 0:
        raise ValueError(
            f"lora_dropout must be 0 where lora_target_modules has the head ({model.head_path})"
        )
    kinds = {type(model.module.get_submodule(name)) for name in names}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=_shortened(model.module, names),
        fan_in_fan_out=kinds == {Conv1D},
        task_type=_TASK_TYPES.get(model.facts.task),
        modules_to_save=model.new_modules or None,
    )
    # PEFT would wrap what is trained whole; here it stays what it is.
    plain = LoraConfig(**{**config.to_dict(), "modules_to_save": None})
    inject_adapter_in_model(plain, model.module, _ADAPTER, low_cpu_mem_usage=True)
    model.adapter = config


def _resolve(model: "TransformersModel", targets: str | Sequence[str]) -> list[str]:
    """The full names of the layers that the targets mean."""
    linear = [name for name, one in model.module.named_modules() if _takes_lora(one)]
    if targets == ALL_LINEAR:
        inside = tuple(f"{path}." for path in model.stack_paths.values())
        return [name for name in linear if name.startswith(inside)]
    if isinstance(targets, str):
        raise ValueError(
            f"lora_target_modules is {targets!r}; use {ALL_LINEAR} or a list of module names"
        )
    found: list[str] = []
    for target in targets:
        own = [name for name in linear if name == target or name.endswith(f".{target}")]
        if not own:
            known = dict.fromkeys(name.rpartition(".")[2] for name in linear)
            raise ValueError(
                f"lora_target_modules: {target} is no linear layer of {model.facts.name}"
                f"{nearest(target, known)}"
            )
        found += own
    return list(dict.fromkeys(found))


def _takes_lora(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _shortened(module: nn.Module, names: Sequence[str]) -> list[str]:
    """The names' last parts where these mean no other layer, as adapters are usually published."""
    short = {name.rpartition(".")[2] for name in names}
    meant = {n for n, _ in module.named_modules() if n.rpartition(".")[2] in short}
    return sorted(short) if meant == set(names) else list(names)


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
    layers = {
        _unwrapped(name): one for name, one in module.named_modules() if isinstance(one, LoraLayer)
    }
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
    a, b = (state[f"{name}.lora_{one}.{_ADAPTER}.weight"].to(wide) for one in "AB")
    update = layer.scaling[_ADAPTER] * (b @ a)
    return (weight.to(wide) + (update.T if layer.fan_in_fan_out else update)).to(weight.dtype)


def _unwrapped(name: str) -> str:
    return name.replace("_checkpoint_wrapped_module.", "")


def peft_tensors(state: Mapping[str, Tensor], saved: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of an adapter under PEFT's names: LoRA, and modules that are trained whole."""
    named = {name.replace(f".{_ADAPTER}.", "."): t for name, t in state.items() if is_adapter(name)}
    whole = tuple(f"{module}." for module in saved)
    if whole:
        named |= {plain_name(n): t for n, t in state.items() if n.startswith(whole)}
    return {f"base_model.model.{name}": tensor for name, tensor in named.items()}
