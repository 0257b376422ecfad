"""A run's YAML: the check of every key, and the typed config that it comes to."""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from kd_config.components import check_component
from kd_config.dataset_nodes import check_dataset_node
from kd_config.mistakes import in_words
from kd_config.rules import check_rules
from kd_config.schema import COMPONENT, LISTED, NAMED, SHORT, RunConfig, marked

_STACKS = "layer_mapping"  # may hold a mapping for each stack
_TEACHERS = "teachers"  # each with components of its own
_ON_POLICY = "on_policy"  # with one of its own


def check_config(cfg: DictConfig) -> DictConfig:
    """The config as it is written, with its short forms and its defaults filled in.

    Raises:
        ValueError: If a key at any level is unknown (the nearest valid one is named), missing, of
            the wrong type, or outside its range.
    """
    try:
        cfg = _as_meant(cfg)
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as err:
        raise ValueError(f"config: {str(err).splitlines()[0]}") from err
    checked = _with_defaults(cfg)
    config = typed(checked)
    for key, node in _components(checked):
        if key.startswith("dataset"):
            check_dataset_node(key, node)
        check_component(key, node)
    check_rules(config)
    return checked


def typed(cfg: DictConfig) -> RunConfig:
    """The values of a config, resolved and converted; components stay as they are written.

    Raises:
        ValueError: If a key is unknown or missing, or a value is of the wrong type or range.
    """
    given = {}
    for key in map(str, cfg):
        if OmegaConf.is_missing(cfg, key):
            continue
        value = cfg[key]
        components = key in _MARKED
        if key == "terms" and isinstance(value, DictConfig):
            value = {str(name): value[name] for name in value}
        elif key == _TEACHERS and isinstance(value, DictConfig):
            value = {str(name): _keys(value[name]) for name in value}
        elif key == _ON_POLICY:
            value = _keys(value)
        elif OmegaConf.is_config(value) and not components:
            value = OmegaConf.to_container(value, resolve=True)
        if value is not None or key not in _REQUIRED:
            given[key] = value
    try:
        return RunConfig.model_validate(given)
    except ValidationError as err:
        raise ValueError(f"config: {in_words(err)}") from err


def _keys(node: Any) -> Any:
    """What a section holds, its components as they are written."""
    return {str(k): node[k] for k in node} if isinstance(node, DictConfig) else node


_MARKED = set(marked(COMPONENT))
_REQUIRED = [name for name, field in RunConfig.model_fields.items() if field.is_required()]


def _as_meant(cfg: DictConfig) -> DictConfig:
    """The config with its short forms written out."""
    cfg = cfg.copy()
    for key, node in cfg.items():
        # torchtune takes key=value on the command line for key._component_=value.
        if isinstance(node, DictConfig) and "_component_" in node:
            value = node["_component_"]
            short = isinstance(value, str) and value == SHORT.get(str(key))
            if value is None or isinstance(value, DictConfig | ListConfig) or short:
                cfg[key] = value
    if isinstance(cfg.get("profiler"), DictConfig) and "_component_" not in cfg.profiler:
        cfg.profiler._component_ = "torchtune.training.setup_torch_profiler"
    return cfg


def _with_defaults(cfg: DictConfig) -> DictConfig:
    """The config with what it leaves out, in the order of the schema."""
    required: dict[str, Any] = dict.fromkeys(_REQUIRED, "???")
    values = RunConfig.model_construct(**required).plain(RunConfig.model_fields)
    # What is no section there, or not what it should be, is for the schema to refuse.
    filled = {key: value for key, value in values.items() if _fits(cfg.get(key), value)}
    merged = OmegaConf.merge(OmegaConf.create(filled), cfg)
    assert isinstance(merged, DictConfig)
    return merged


def _fits(given: Any, default: Any) -> bool:
    """Whether a default goes together with what is given, which replaces it or adds to it."""
    return not isinstance(default, dict) or given is None or isinstance(given, DictConfig)


def _components(cfg: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """Each ``(key, node)`` of the config that names a component, lists of components included."""
    for key in marked(COMPONENT):
        value = cfg[key]
        if key == _STACKS and isinstance(value, DictConfig) and "_component_" not in value:
            for stack, node in value.items():
                if isinstance(node, DictConfig):
                    yield f"{key}.{stack!s}", node
            continue
        nodes = value if isinstance(value, ListConfig) and key in marked(LISTED) else [value]
        for i, node in enumerate(nodes):
            yield from _checked(key if node is value else f"{key}[{i}]", node, key in marked(NAMED))
    for name, node in cfg.terms.items():
        yield from _checked(f"terms.{name}", node, named=False)
    for name, teacher in cfg[_TEACHERS].items():
        for key in ("model", "checkpointer", "quantization"):
            node = teacher.get(key)
            yield from _checked(f"{_TEACHERS}.{name}.{key}", node, named=key == "quantization")
    if cfg[_ON_POLICY] is not None:
        key = "generator"
        yield from _checked(f"{_ON_POLICY}.{key}", cfg[_ON_POLICY].get(key), named=False)


def _checked(key: str, node: Any, named: bool) -> Iterator[tuple[str, DictConfig]]:
    if isinstance(node, DictConfig):
        yield from _with_parts(key, node)
    elif node is not None and not (named and isinstance(node, str | ListConfig)):
        raise ValueError(f"config: {key} must name a _component_, not {node!r}")


def _with_parts(key: str, node: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """``node``, and the datasets that it mixes."""
    yield key, node
    parts = node.get("datasets")
    for i, part in enumerate(parts if isinstance(parts, ListConfig) else []):
        if not isinstance(part, DictConfig):
            raise ValueError(f"config: {key}.datasets[{i}] must name a _component_, not {part!r}")
        yield from _with_parts(f"{key}.datasets[{i}]", part)
