"""The values of a run's config: their ranges, and the weights that they come to."""

from dataclasses import fields

from omegaconf import DictConfig, OmegaConf

from kd_config.schema import (
    DynamicScaling,
    LayerProjection,
    LossScaling,
    RunConfig,
    Scales,
    TokenScope,
)

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
_AT_LEAST_ZERO = ("skip_nonfinite_steps", "num_workers")
_SECTIONS = {
    "": RunConfig,
    "loss_scaling": LossScaling,
    "loss_scaling.manual_scales": Scales,
    "loss_scaling.dynamic": DynamicScaling,
    "loss_scaling.dynamic.shares": Scales,
    "layer_projection": LayerProjection,
    "token_scope": TokenScope,
}


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


def keys_of(section: str) -> list[str]:
    """The keys that a config has below ``section``; at its top for an empty one."""
    return [field.name for field in fields(_SECTIONS[section])] if section in _SECTIONS else []


def check_sections(cfg: DictConfig) -> None:
    """Check that the keys that hold other keys do so, parents first.

    Raises:
        ValueError: If one holds a plain value instead.
    """
    for key in filter(None, _SECTIONS):
        value = OmegaConf.select(cfg, key)
        if value is not None and not isinstance(value, DictConfig):
            names = ", ".join(keys_of(key))
            raise ValueError(f"config: {key} is {value!r}; it must hold keys, any of {names}")


def check_values(cfg: DictConfig) -> None:
    """Check what types alone do not say.

    Raises:
        ValueError: If a value is out of its range, or the parts do not go together.
    """
    for key, allowed in _CHOICES.items():
        value = OmegaConf.select(cfg, key)
        if value not in allowed:
            why = (
                " (fp16 needs gradient scaling, which is not done here)" if value == "fp16" else ""
            )
            raise ValueError(f"config: {key} is {value!r}; use {' or '.join(allowed)}{why}")
    _check_numbers(cfg)
    _check_scaling(cfg.loss_scaling)
    weights = loss_weights(cfg)
    if not any(vars(weights).values()):
        raise ValueError("config: kd_ratio, loss_scaling: every part has the weight 0: no loss")
    if needs_teacher(weights):
        for key in ("teacher_model", "teacher_checkpointer", "kd_loss"):
            if cfg[key] is None and not (key == "kd_loss" and weights.kd == 0):
                raise ValueError(f"config: {key} must be set (or give kd and ir the weight 0)")
    if cfg.layer_mapping == [] and weights.ir > 0:
        raise ValueError("config: layer_mapping names no pair; name some, or set it to none")
    if cfg.run_val_every_n_steps is not None and cfg.dataset_val is None:
        raise ValueError("config: run_val_every_n_steps is set, but there is no dataset_val")


def _check_numbers(cfg: DictConfig) -> None:
    for key in _AT_LEAST_ONE:
        if cfg[key] is not None and cfg[key] < 1:
            raise ValueError(f"config: {key} is {cfg[key]}; it must be at least 1")
    chunks = OmegaConf.select(cfg, "loss.num_output_chunks")
    if chunks is not None and not (isinstance(chunks, int) and chunks >= 1):
        raise ValueError(f"config: loss.num_output_chunks is {chunks!r}; it must be at least 1")
    if cfg.clip_grad_norm is not None and not cfg.clip_grad_norm > 0:
        raise ValueError(f"config: clip_grad_norm is {cfg.clip_grad_norm}; it must be above 0")
    lr = cfg.layer_projection.lr
    if lr is not None and not 0 <= lr < float("inf"):
        raise ValueError(f"config: layer_projection.lr is {lr}; it must be a number of at least 0")
    for key in _AT_LEAST_ZERO:
        if cfg[key] < 0:
            raise ValueError(f"config: {key} is {cfg[key]}; it must be at least 0")
    if cfg.seed is not None and not 0 <= cfg.seed < 2**31:
        raise ValueError(f"config: seed is {cfg.seed}; it must lie between 0 and 2^31 - 1")
    if not 0 <= cfg.kd_ratio <= 1:
        raise ValueError(f"config: kd_ratio is {cfg.kd_ratio}; it must lie between 0 and 1")


def _check_scaling(scaling: DictConfig) -> None:
    dynamic = scaling.dynamic
    if dynamic is not None and not 0 <= dynamic.ema < 1:
        raise ValueError(f"config: loss_scaling.dynamic.ema is {dynamic.ema}; use 0 <= ema < 1")
    if dynamic is not None and not 1 <= dynamic.max_weight < float("inf"):
        raise ValueError(
            f"config: loss_scaling.dynamic.max_weight is {dynamic.max_weight}; it must be a finite "
            "number of at least 1"
        )
    for key in ("manual_scales", "dynamic.shares"):
        scales = OmegaConf.select(scaling, key) or {}
        for part in scales:
            if not 0 <= scales[part] < float("inf"):
                raise ValueError(
                    f"config: loss_scaling.{key}.{part} is {scales[part]}; "
                    "it must be a finite number of at least 0"
                )
