"""A run's YAML: the check of every key, and what the weights come to."""

import difflib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError
from torchtune.config import instantiate
from torchtune.config._utils import _get_component_from_path

from hf_models.missing import missing
from kd_config.dataset_nodes import FILE_READERS, check_dataset_node
from kd_config.kinds import check_class, check_value
from kd_config.schema import RunConfig
from kd_config.values import check_sections, check_values, keys_of

_ALWAYS = ("model", "tokenizer", "checkpointer", "dataset", "optimizer")
_COMPONENTS = ("model", "teacher_model", "tokenizer", "teacher_tokenizer",
               "checkpointer", "teacher_checkpointer", "loss", "kd_loss", "prompt_kd_loss",
               "ir_loss", "dataset", "dataset_val", "optimizer", "lr_scheduler",
               "metric_logger", "profiler", "layer_mapping", "teacher_quantization")  # fmt: skip
_LISTS = ("dataset", "dataset_val", "metric_logger")
# These have a short form: a name (or pairs of layers).
_NAMED = ("layer_mapping", "teacher_quantization")


def check_config(cfg: DictConfig) -> DictConfig:
    """The config with defaults filled in and types converted.

    Raises:
        ValueError: If a key at any level is unknown (the nearest valid one is named), missing, of
            the wrong type, or outside its range.
    """
    schema = OmegaConf.structured(RunConfig)
    try:
        check_sections(cfg)
        cfg = _as_meant(cfg)
        checked = OmegaConf.merge(schema, cfg)
        OmegaConf.to_container(checked, resolve=True, throw_on_missing=False)
    except ConfigKeyError as err:
        raise ValueError(_unknown_key(err)) from err
    except ValidationError as err:
        raise ValueError(f"config: {err.full_key}: {str(err).splitlines()[0]}") from err
    except OmegaConfBaseException as err:
        raise ValueError(f"config: {str(err).splitlines()[0]}") from err
    assert isinstance(checked, DictConfig)
    missing = [key for key in checked if OmegaConf.is_missing(checked, key)]
    missing += [key for key in _ALWAYS if key not in missing and checked[key] is None]
    if missing:
        raise ValueError(f"config: {', '.join(map(str, missing))} must be set")
    for key, node in _components(checked):
        if key.startswith("dataset"):
            check_dataset_node(key, node)
        check_component(key, node)
    check_values(checked)
    return checked


def _as_meant(cfg: DictConfig) -> DictConfig:
    """The config with its short forms written out."""
    cfg = cfg.copy()
    for key, node in cfg.items():
        # torchtune takes key=value on the command line for key._component_=value.
        if isinstance(node, DictConfig) and "_component_" in node:
            value = node["_component_"]
            if value is None or isinstance(value, DictConfig | ListConfig):
                cfg[key] = value
    if isinstance(cfg.get("profiler"), DictConfig) and "_component_" not in cfg.profiler:
        cfg.profiler._component_ = "torchtune.training.setup_torch_profiler"
    return cfg


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


def _components(cfg: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """Each ``(key, node)`` of the config that names a component, lists of components included."""
    for key in _COMPONENTS:
        value = cfg[key]
        nodes = value if isinstance(value, ListConfig) and key in _LISTS else [value]
        for i, node in enumerate(nodes):
            if isinstance(node, DictConfig):
                yield from _with_parts(key if node is value else f"{key}[{i}]", node)
            elif node is not None and not (key in _NAMED and isinstance(node, str | ListConfig)):
                raise ValueError(f"config: {key} must name a _component_, not {node!r}")


def _with_parts(key: str, node: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """``node``, and the datasets that it mixes."""
    yield key, node
    parts = node.get("datasets")
    for i, part in enumerate(parts if isinstance(parts, ListConfig) else []):
        if not isinstance(part, DictConfig):
            raise ValueError(f"config: {key}.datasets[{i}] must name a _component_, not {part!r}")
        yield from _with_parts(f"{key}.datasets[{i}]", part)


def check_component(key: str, node: DictConfig) -> None:
    """Check that ``node`` names something that exists and takes the arguments given.

    Raises:
        ValueError: If it does not; the message names ``key`` and the nearest valid argument.
    """
    if "_component_" not in node:
        near = _nearest("_component_", node)
        raise ValueError(f"config: {key} has no _component_{near}")
    path = node["_component_"]
    if not isinstance(path, str):
        raise ValueError(
            f"config: {key}._component_ is {path!r}; it must be a dotted name, such as "
            "kd_losses.ForwardKLLoss"
        )
    try:
        named = _get_component_from_path(path)
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
                f"config: {key}.{name} is no argument of {path}{_nearest(name, parameters)}"
            )


def takes(node: DictConfig, argument: str) -> bool:
    """Whether the component that ``node`` names has an argument of this name."""
    return argument in _parameters(_get_component_from_path(node["_component_"]))


def _parameters(named: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(named, eval_str=True).parameters
    except Exception:  # an annotation that only a type checker can look up may raise anything
        return inspect.signature(named).parameters


def _unknown_key(err: ConfigKeyError) -> str:
    full_key = str(err.full_key)
    parent, _, name = full_key.rpartition(".")
    return f"config: {full_key} is no key of a run{_nearest(name, keys_of(parent))}"


def _nearest_in_module(path: str) -> str:
    module, _, name = path.rpartition(".")
    loaded = sys.modules.get(module)  # torchtune has tried to import it
    return "" if loaded is None else _nearest(name, getattr(loaded, "__all__", dir(loaded)))


def _nearest(name: Any, valid: Iterable[Any]) -> str:
    close = difflib.get_close_matches(str(name), [str(v) for v in valid], n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
