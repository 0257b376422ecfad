"""A run in a few lines, for people."""

from typing import Any

from omegaconf import DictConfig

from kd_training.build import count_parameters
from layer_mapping import LayerMatcher


def describe(
    cfg: DictConfig, student: Any, teacher: Any, matcher: LayerMatcher | None, total_steps: int
) -> list[str]:
    """Sizes of the models, matched layers, steps."""
    total, trainable = count_parameters(student)
    layers = len(student.layers)
    lines = [f"student: {layers} layers, {_millions(total)}, {_millions(trainable)} trainable"]
    if teacher is not None:
        size = count_parameters(teacher)[0]
        lines.append(f"teacher: {len(teacher.layers)} layers, {_millions(size)}")
    if matcher is not None:
        pairs = ", ".join(f"{s}-{t}" for s, t in matcher.pairs)
        lines.append(f"layers matched (student-teacher): {pairs}")
    batch = f"{cfg.batch_size} x {cfg.gradient_accumulation_steps}"
    return [*lines, f"{total_steps} steps of {batch} samples"]


def _millions(number: int) -> str:
    return f"{number / 1e6:.1f}M parameters"
