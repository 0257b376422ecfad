"""A run in a few lines, for people."""

from collections.abc import Sequence

import torch

from hf_models.model import Model
from kd_config.schema import RunConfig
from kd_data.sources import Source
from kd_training.objective.term import Term
from kd_training.placement.one_device import Placement
from kd_training.preflight.estimates import count_parameters, estimate_memory


def plan(
    config: RunConfig,
    student: Model,
    teacher: Model | None,
    terms: Sequence[Term],
    source: Source,
    dtype: torch.dtype,
    placement: Placement,
) -> list[str]:
    """Sizes of the models, matched layers, steps and tokens, memory."""
    total, trainable = count_parameters(student.module)
    lines = [
        f"student: {_layers(student)} layers, {_millions(total)}, {_millions(trainable)} trainable"
    ]
    if teacher is not None:
        size = count_parameters(teacher.module)[0]
        lines.append(f"teacher: {_layers(teacher)} layers, {_millions(size)}")
    lines += [line for line in (term.describe() for term in terms) if line]
    lines += source.describe(config.epochs)
    memory = estimate_memory(config, student, teacher, dtype, placement)
    return [*lines, memory.line(placement.device)]


def _layers(model: Model) -> str:
    return " + ".join(str(stack.depth) for stack in model.facts.stacks.values())


def _millions(number: int) -> str:
    return f"{number / 1e6:.1f}M parameters"
