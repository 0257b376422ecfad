"""Whether what a config names is of the kind that its key is for."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from omegaconf import ListConfig
from torch import Tensor
from torchao.optim import CPUOffloadOptimizer

# What a class has that can stand at a key. A function is judged by what it builds.
_MEMBER = {
    "optimizer": "zero_grad",
    "metric_logger": "log_dict",
    "checkpointer": "load_checkpoint",
    "teacher_checkpointer": "load_checkpoint",
    "dataset": "__getitem__",
    "dataset_val": "__getitem__",
}
# Arguments of these types are checked, and in these words. Every other annotation lets all pass.
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    list: "a list",
    tuple: "a list",
    Sequence: "a list",
    NoneType: "null",
}


def check_class(key: str, path: str, named: Any) -> None:
    """Check a class before it is used, which may be after other things were written.

    torchao's CPUOffloadOptimizer is refused by name. It is an optimizer per parameter, each with a
    copy on the host: a checkpoint finds no state by the model's parameters, the copies take each
    gradient within the backward, before it could be clipped, and after its own load_state_dict the
    parameters that it leaves on the device no longer follow a schedule.

    Raises:
        ValueError: If it has not what objects at ``key`` are used for.
    """
    if named is CPUOffloadOptimizer:
        raise ValueError(
            f"config: {key}: {path} cannot be resumed exactly, nor be clipped; use "
            "torchao.optim.AdamW8bit, or kd_distributed with fsdp_cpu_offload: true, which one "
            "GPU can run too (--nproc_per_node 1)"
        )
    member = _MEMBER.get(key.partition("[")[0])
    if member is not None and inspect.isclass(named) and not hasattr(named, member):
        raise ValueError(f"config: {key}: {path} cannot be used there: it has no {member}")


def check_value(key: str, value: Any, parameter: inspect.Parameter) -> None:
    """Check a component's argument against the type that its parameter is annotated with.

    Only plain types say enough: what else YAML's values are turned into is the component's affair.

    Raises:
        ValueError: If it is of another type.
    """
    annotation = parameter.annotation
    union = get_origin(annotation) in (Union, UnionType)
    types = [get_origin(one) or one for one in (get_args(annotation) if union else [annotation])]
    types = [one for one in types if one is not Tensor]  # which no YAML holds
    if (value is None and parameter.default is None) or not all(one in WORDS for one in types):
        return
    if not any(_is_a(value, one) for one in types):
        words = dict.fromkeys(WORDS[one] for one in types)
        shown = "null" if value is None else repr(value)
        raise ValueError(f"config: {key} is {shown}; it must be {' or '.join(words)}")


def _is_a(value: Any, wanted: Any) -> bool:
    if WORDS[wanted] == "a list":
        return isinstance(value, ListConfig)
    if wanted is Path:
        return isinstance(value, str)
    if isinstance(value, bool) or wanted is bool:  # to Python a bool is an int
        return isinstance(value, bool) and wanted is bool
    return isinstance(value, wanted) or (wanted is float and isinstance(value, int))


def expect(fits: bool, node: Any, key: str, kind: str) -> None:
    """Raise `ValueError` unless what ``node`` has built ``fits``; ``kind`` says what would."""
    if not fits:
        raise ValueError(f"config: {key} is {node._component_}; it must be {kind}")
