"""A run in a few lines, for people."""

from typing import Any

from omegaconf import DictConfig

from kd_data.sources import Data
from kd_training.build import count_parameters
from layer_mapping import LayerMatcher

_LOOK_AT = 100  # samples, for their mean length


def describe(
    cfg: DictConfig, student: Any, teacher: Any, matcher: LayerMatcher | None, data: Data
) -> list[str]:
    """Sizes of the models, matched layers, steps and tokens."""
    total, trainable = count_parameters(student)
    layers = len(student.layers)
    lines = [f"student: {layers} layers, {_millions(total)}, {_millions(trainable)} trainable"]
    if teacher is not None:
        size = count_parameters(teacher)[0]
        lines.append(f"teacher: {len(teacher.layers)} layers, {_millions(size)}")
    if matcher is not None:
        pairs = ", ".join(f"{s}-{t}" for s, t in matcher.pairs)
        lines.append(f"layers matched (student-teacher): {pairs}")
    dataset: Any = data.loader.dataset
    if cfg.teacher_tokenizer is not None:
        share = dataset.paired_share or 0.0
        lines.append(f"targets paired with the teacher's: {share:.0%} in the first samples")
    steps = cfg.epochs * data.steps_per_epoch
    tokens = steps * data.global_batch * _mean_length(dataset)
    return [*lines, f"{steps} steps of {data.global_batch} samples, about {tokens:.2g} tokens"]


def _mean_length(dataset: Any) -> float:
    looked_at = min(len(dataset), _LOOK_AT)
    return sum(len(dataset[i]["tokens"]) for i in range(looked_at)) / looked_at


def _millions(number: int) -> str:
    return f"{number / 1e6:.1f}M parameters"
