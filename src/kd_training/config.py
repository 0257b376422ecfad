"""A run's YAML: the check of every key, and what the weights come to."""

import difflib
import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError
from torchtune.config import instantiate
from torchtune.config._utils import _get_component_from_path

from kd_training.schema import RunConfig, Scales

_ALWAYS = ("model", "tokenizer", "checkpointer", "dataset", "optimizer")
_COMPONENTS = ("model", "teacher_model", "tokenizer", "checkpointer", "teacher_checkpointer",
               "loss", "kd_loss", "prompt_kd_loss", "ir_loss", "dataset", "dataset_val",
               "optimizer", "lr_scheduler", "metric_logger", "profiler",
               "layer_mapping", "teacher_quantization")  # fmt: skip
# These have a short form: a name (or pairs of layers).
_NAMED = ("layer_mapping", "teacher_quantization")
_CHOICES = {
    "dtype": ("fp32", "bf16"),
    "token_scope.kd": ("labels", "all"),
    "token_scope.ir": ("labels", "all"),
    "layer_projection.mode": ("auto", "always", "never"),
    "teacher_sharding": ("full", "none"),
}
_AT_LEAST_ONE = ("batch_size", "batch_size_val", "epochs", "max_steps_per_epoch",
                 "gradient_accumulation_steps", "log_every_n_steps",
                 "run_val_every_n_steps", "save_every_n_steps", "keep_last_n",
                 "data_parallel_replicate_dim")  # fmt: skip


def check_config(cfg: DictConfig) -> DictConfig:
    """The config with defaults filled in and types converted.

    Raises:
        ValueError: If a key at any level is unknown (the nearest valid one is named), missing, of
            the wrong type, or outside its range.
    """
    schema = OmegaConf.structured(RunConfig)
    try:
        checked = OmegaConf.merge(schema, cfg, _implied(cfg))
        OmegaConf.to_container(checked, resolve=True, throw_on_missing=False)
    except ConfigKeyError as err:
        raise ValueError(_unknown_key(err, schema)) from err
    except ValidationError as err:
        raise ValueError(f"config: {err.full_key}: {str(err).splitlines()[0]}") from err
    except OmegaConfBaseException as err:
        raise ValueError(f"config: {str(err).splitlines()[0]}") from err
    assert isinstance(checked, DictConfig)
    missing = [key for key in checked if OmegaConf.is_missing(checked, key)]
    missing += [key for key in _ALWAYS if key not in missing and checked[key] is None]
    if missing:
        raise ValueError(f"config: {', '.join(map(str, missing))} must be set")
    _check_values(checked)
    for key, node in _components(checked):
        check_component(key, node)
    return checked


def _implied(cfg: DictConfig) -> dict[str, Any]:
    """What short forms stand for."""
    # On the command line, key=null reaches us as {_component_: null, ...}.
    implied: dict[str, Any] = {
        str(key): None
        for key, node in cfg.items()
        if isinstance(node, DictConfig) and node.get("_component_", "") is None
    }
    if isinstance(cfg.get("profiler"), DictConfig) and "_component_" not in cfg.profiler:
        implied["profiler"] = {"_component_": "torchtune.training.setup_torch_profiler"}
    return implied


def component(node: Any, key: str, *args: Any, **kwargs: Any) -> Any:
    """What ``node`` names, built by torchtune; None for no node.

    Raises:
        ValueError: If it cannot be built; the message names ``key``.
    """
    try:
        return instantiate(node, *args, **kwargs)
    except Exception as err:  # any component may be named, so it may raise anything
        why = " ".join(str(err).split()) or type(err).__name__
        raise ValueError(f"config: {key}: {why}") from err


def loss_weights(cfg: DictConfig) -> Scales:
    """The weight of each part: ``manual_scales`` if enabled, else ``1 - kd_ratio``, ``kd_ratio``.

    The intermediate layers' weight is ``loss_scaling.manual_scales.ir`` either way, and 0 where
    ``layer_mapping`` is ``none``. With ``dynamic`` it is the shares that the weights start from.
    """
    scaling = cfg.loss_scaling
    dynamic = scaling.enabled and scaling.dynamic is not None
    scales = scaling.dynamic.shares if dynamic else scaling.manual_scales
    ir = 0.0 if cfg.layer_mapping in (None, "none") else scales.ir
    if cfg.loss_scaling.enabled:
        return Scales(scales.ce, scales.kd, ir)
    return Scales(1 - cfg.kd_ratio, cfg.kd_ratio, ir)


def needs_teacher(weights: Scales) -> bool:
    """Whether any part with a weight looks at the teacher."""
    return weights.kd > 0 or weights.ir > 0


def _check_values(cfg: DictConfig) -> None:
    for key, allowed in _CHOICES.items():
        value = OmegaConf.select(cfg, key)
        if value not in allowed:
            why = (
                " (fp16 needs gradient scaling, which is not done here)" if value == "fp16" else ""
            )
            raise ValueError(f"config: {key} is {value!r}; use {' or '.join(allowed)}{why}")
    for key in _AT_LEAST_ONE:
        if cfg[key] is not None and cfg[key] < 1:
            raise ValueError(f"config: {key} is {cfg[key]}; it must be at least 1")
    if cfg.clip_grad_norm is not None and not cfg.clip_grad_norm > 0:
        raise ValueError(f"config: clip_grad_norm is {cfg.clip_grad_norm}; it must be above 0")
    if cfg.skip_nonfinite_steps < 0:
        raise ValueError(
            f"config: skip_nonfinite_steps is {cfg.skip_nonfinite_steps}; it must be at least 0"
        )
    if not 0 <= cfg.kd_ratio <= 1:
        raise ValueError(f"config: kd_ratio is {cfg.kd_ratio}; it must lie between 0 and 1")
    dynamic = cfg.loss_scaling.dynamic
    if dynamic is not None and not 0 <= dynamic.ema < 1:
        raise ValueError(f"config: loss_scaling.dynamic.ema is {dynamic.ema}; use 0 <= ema < 1")
    for key in ("manual_scales", "dynamic.shares"):
        scales = OmegaConf.select(cfg.loss_scaling, key) or {}
        for part in scales:
            if not 0 <= scales[part] < float("inf"):
                raise ValueError(
                    f"config: loss_scaling.{key}.{part} is {scales[part]}; "
                    "it must be a finite number of at least 0"
                )
    if needs_teacher(loss_weights(cfg)):
        for key in ("teacher_model", "teacher_checkpointer", "kd_loss"):
            if cfg[key] is None and not (key == "kd_loss" and loss_weights(cfg).kd == 0):
                raise ValueError(f"config: {key} must be set (or give kd and ir the weight 0)")
    if cfg.run_val_every_n_steps is not None and cfg.dataset_val is None:
        raise ValueError("config: run_val_every_n_steps is set, but there is no dataset_val")


def _components(cfg: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """Each ``(key, node)`` of the config that names a component, lists of components included."""
    for key in _COMPONENTS:
        value = cfg[key]
        nodes = value if isinstance(value, ListConfig) else [value]
        for i, node in enumerate(nodes):
            if isinstance(node, DictConfig):
                yield (f"{key}[{i}]" if isinstance(value, ListConfig) else key), node
            elif node is not None and not (key in _NAMED and isinstance(node, str | ListConfig)):
                raise ValueError(f"config: {key} must name a _component_, not {node!r}")


def check_component(key: str, node: DictConfig) -> None:
    """Check that ``node`` names something that exists and takes the arguments given.

    Raises:
        ValueError: If it does not; the message names ``key`` and the nearest valid argument.
    """
    if "_component_" not in node:
        near = _nearest("_component_", node)
        raise ValueError(f"config: {key} has no _component_{near}")
    path = node["_component_"]
    try:
        parameters = inspect.signature(_get_component_from_path(path)).parameters
    except (Exception, SystemExit) as err:  # whatever importing the user's module raises
        why = " ".join(str(err).split())
        raise ValueError(f"config: {key}._component_ {path!r} cannot be imported: {why}") from err
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for name in map(str, node):
        if name != "_component_" and name not in parameters:
            raise ValueError(
                f"config: {key}.{name} is no argument of {path}{_nearest(name, parameters)}"
            )


def _unknown_key(err: ConfigKeyError, schema: DictConfig) -> str:
    full_key = str(err.full_key)
    parent, _, name = full_key.rpartition(".")
    siblings = OmegaConf.select(schema, parent) if parent else schema
    return f"config: {full_key} is no key of a run{_nearest(name, siblings)}"


def _nearest(name: Any, valid: Iterable[Any]) -> str:
    close = difflib.get_close_matches(str(name), [str(v) for v in valid], n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
