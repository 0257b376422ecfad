"""What keys must be together."""

from kd_config.components import argument, nearest
from kd_config.dataset_nodes import is_packed
from kd_config.schema import RunConfig, Scales
from kd_config.weights import loss_weights


def check_rules(config: RunConfig) -> None:
    """Check what types and ranges alone do not say.

    Raises:
        ValueError: If keys do not go together.
    """
    chunks = argument(config.loss, "num_output_chunks")
    if chunks is not None and not (isinstance(chunks, int) and chunks >= 1):
        raise ValueError(f"config: loss.num_output_chunks is {chunks!r}; it must be at least 1")
    _check_terms(config)
    weights = loss_weights(config)
    if config.layer_mapping == [] and weights["ir"] > 0:
        raise ValueError("config: layer_mapping names no pair; name some, or set it to none")
    for key in ("run_val_every_n_steps", "run_val_at_start"):
        if getattr(config, key) and config.dataset_val is None:
            raise ValueError(f"config: {key} is set, but there is no dataset_val")
    _check_grouping(config)
    _check_teachers(config)


def _check_teachers(config: RunConfig) -> None:
    """Whoever teaches is described once."""
    one = ("teacher_model", "teacher_checkpointer", "teacher_quantization", "teacher_cache",
           "teacher_tokenizer")  # fmt: skip
    several = "several teachers have models and caches of their own, and the student's tokenizer"
    server = "the server has the teacher, which shares the student's tokenizer"
    for way, others, why in (
        ("teachers", one, several),
        ("teacher_server", (*one, "teachers"), server),
    ):
        for key in others:
            if getattr(config, way) and getattr(config, key):
                raise ValueError(
                    f"config: {key} and {way}: leave out one of them (set {key}: null); {why}"
                )


def _check_terms(config: RunConfig) -> None:
    for name in config.terms:
        if not name.isidentifier():
            raise ValueError(f"config: terms.{name}: the name is no plain word; give it another")
    scaling = config.loss_scaling
    sections = {"manual_scales": scaling.manual_scales}
    if scaling.dynamic is not None:
        sections["dynamic.shares"] = scaling.dynamic.shares
    valid = [*Scales.model_fields, *config.terms]
    for section, scales in sections.items():
        for name in scales.by_name():
            if name not in valid:
                raise ValueError(
                    f"config: loss_scaling.{section}.{name} is no key of a run"
                    f"{nearest(name, valid)}"
                )


def _check_grouping(config: RunConfig) -> None:
    """``group_by_length`` must go together with the order and the data."""
    if not config.group_by_length:
        return
    if not config.shuffle:
        raise ValueError(
            "config: group_by_length draws the order of the samples, so shuffle must be true"
        )
    if is_packed(config.dataset):
        raise ValueError(
            "config: group_by_length: dataset is packed, so all of its rows have one length; "
            "leave out one of the two"
        )
