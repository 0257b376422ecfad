"""Whether what a config names is of the kind that its key is for."""

import inspect
from typing import Any

from omegaconf import DictConfig

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

    Raises:
        ValueError: If it has not what objects at ``key`` are used for.
    """
    member = _MEMBER.get(key.partition("[")[0])
    if member is not None and inspect.isclass(named) and not hasattr(named, member):
        raise ValueError(f"config: {key}: {path} cannot be used there: it has no {member}")


def expect(fits: bool, cfg: DictConfig, key: str, kind: str) -> None:
    """Raise `ValueError` unless what ``cfg[key]`` has built ``fits``; ``kind`` says what would."""
    if not fits:
        raise ValueError(f"config: {key} is {cfg[key]._component_}; it must be {kind}")
