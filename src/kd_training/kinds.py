"""Whether what a config names is of the kind that its key is for."""

import inspect
from typing import Any

from omegaconf import DictConfig
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


def expect(fits: bool, cfg: DictConfig, key: str, kind: str) -> None:
    """Raise `ValueError` unless what ``cfg[key]`` has built ``fits``; ``kind`` says what would."""
    if not fits:
        raise ValueError(f"config: {key} is {cfg[key]._component_}; it must be {kind}")
