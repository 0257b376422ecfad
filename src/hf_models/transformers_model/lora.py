"""LoRA by PEFT, put into a model. Imported by those alone who want it: PEFT takes a second."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_models.nearest import nearest
from hf_models.transformers_model.lora_state import ADAPTER

if TYPE_CHECKING:
    from hf_models.transformers_model.model import TransformersModel

ALL_LINEAR = "all-linear"
# PEFT's own class for SEQ_2_SEQ_LM looks for a method that transformers 5 has no more; without a
# type it takes its general class, which works.
_TASK_TYPES = {"causal_lm": "CAUSAL_LM", "sequence_classification": "SEQ_CLS"}


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
    inject_adapter_in_model(plain, model.module, ADAPTER, low_cpu_mem_usage=True)
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
