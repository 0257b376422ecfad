"""Components: what `_component_` names, the check of its arguments, and what it builds."""

import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig
from torchtune.config import instantiate

from hf_models.missing import missing
from hf_models.nearest import nearest
from kd_config.dataset_nodes import FILE_READERS
from kd_config.kinds import check_class, check_value, expect

__all__ = ["argument", "check_component", "component", "expect", "imported", "nearest", "reason",
           "takes"]  # fmt: skip


def component(node: Any, key: str, *args: Any, **kwargs: Any) -> Any:
    """What ``node`` names, built by torchtune; None for no node.

    Raises:
        ValueError: If it cannot be built; the message names ``key``.
    """
    try:
        return instantiate(node, *args, **kwargs)
    except Exception as err:  # any component may be named, so it may raise anything
        why = reason(err)
        raise ValueError(f"config: {key}{_source(node, why)}: {_missing(node) or why}") from err


def reason(err: BaseException) -> str:
    """What went wrong, and what it came from, in one line."""
    text = " ".join(str(err).split()) or type(err).__name__
    while cause := err.__cause__ or err.__context__:
        err = cause
    root = " ".join(str(err).split())
    return text if root in text else f"{text}: {root}"


def _missing(node: Any) -> str | None:
    """That a data file is not there, in words that tell what to do; None if it is not that."""
    if not isinstance(node, DictConfig) or node.get("source", "json") not in FILE_READERS:
        return None
    files = node.get("data_files")
    for file in files if isinstance(files, ListConfig) else [files]:
        # A pattern or an address is nothing to look for here.
        local = isinstance(file, str) and not any(mark in file for mark in ("://", "*", "?", "["))
        if local and not Path(file).exists():
            return missing(file, "file")
    return None


def _source(node: Any, known: str) -> str:
    """The files that a component was to read, unless the message names them anyway."""
    for name in ("data_files", "checkpoint_dir"):
        value = node.get(name) if isinstance(node, DictConfig) else None
        if value is not None and str(value) not in known:
            return f" ({value})"
    return ""


def imported(path: str) -> Any:
    """What a dotted path names, such as ``kd_losses.ForwardKLLoss``.

    Raises:
        ImportError: If a part of it does not exist; or whatever importing it raises.
        ValueError: If it is no dotted path to something callable.
    """
    names = path.split(".")
    if len(names) < 2 or not all(name.isidentifier() for name in names):
        raise ValueError(f"{path!r} is no dotted name of something callable")
    found: Any = importlib.import_module(names[0])
    for i, name in enumerate(names[1:], start=1):
        parent = ".".join(names[:i])
        if not hasattr(found, name) and hasattr(found, "__path__"):
            importlib.import_module(f"{parent}.{name}")
        if not hasattr(found, name):
            raise ImportError(f"{parent} has no {name}")
        found = getattr(found, name)
    if not callable(found):
        raise ValueError(f"{path} is not callable")
    return found


def argument(node: Any, name: str) -> Any:
    """The argument of that name which a config gives a component; None for none."""
    return node.get(name) if isinstance(node, DictConfig) else None


def check_component(key: str, node: DictConfig) -> None:
    """Check that ``node`` names something that exists and takes the arguments given.

    Raises:
        ValueError: If it does not; the message names ``key`` and the nearest valid argument.
    """
    if "_component_" not in node:
        near = nearest("_component_", node)
        raise ValueError(f"config: {key} has no _component_{near}")
    path = node["_component_"]
    if not isinstance(path, str):
        raise ValueError(
            f"config: {key}._component_ is {path!r}; it must be a dotted name, such as "
            "kd_losses.ForwardKLLoss"
        )
    try:
        named = imported(path)
        parameters = _parameters(named)
    except (Exception, SystemExit) as err:  # whatever importing the user's module raises
        why = " ".join(str(err).split()) + _nearest_in_module(path)
        raise ValueError(f"config: {key}._component_ {path!r} cannot be imported: {why}") from err
    check_class(key, path, named)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in map(str, node):
        if name in parameters:
            check_value(f"{key}.{name}", node[name], parameters[name])
        elif name != "_component_" and not takes_any:
            raise ValueError(
                f"config: {key}.{name} is no argument of {path}{nearest(name, parameters)}"
            )


def takes(node: DictConfig, argument: str) -> bool:
    """Whether the component that ``node`` names has an argument of this name."""
    return argument in _parameters(imported(node["_component_"]))


def _parameters(named: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(named, eval_str=True).parameters
    except Exception:  # an annotation that only a type checker can look up may raise anything
        return inspect.signature(named).parameters


def _nearest_in_module(path: str) -> str:
    module, _, name = path.rpartition(".")
    loaded = sys.modules.get(module)  # importing it has been tried
    return "" if loaded is None else nearest(name, getattr(loaded, "__all__", dir(loaded)))
