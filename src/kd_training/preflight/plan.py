"""A run in a few lines, for people."""

from collections.abc import Sequence

import torch

from hf_models.model import Model
from kd_config.schema import RunConfig
from kd_data.sources import Source
from kd_teachers import Teacher, live_models
from kd_training.objective.term import Term
from kd_training.placement.one_device import Placement
from kd_training.preflight.estimates import count_parameters, estimate_memory


def plan(
    config: RunConfig,
    student: Model,
    teacher: Teacher | None,
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
    models = live_models(teacher)
    for key, model in models.items():
        size = _millions(count_parameters(model.module)[0])
        name = "teacher" if len(models) == 1 else f"teacher {key.split('.')[1]}"
        lines.append(f"{name}: {_layers(model)} layers, {size}")
    lines += [line for line in (term.describe() for term in terms) if line]
    lines += source.describe(config.epochs)
    if teacher is not None:
        lines += teacher.describe()
    memory = estimate_memory(config, student, models.values(), dtype, placement)
    return [*lines, memory.line(placement.device)]


def _layers(model: Model) -> str:
    return " + ".join(str(stack.depth) for stack in model.facts.stacks.values())


def _millions(number: int) -> str:
    return f"{number / 1e6:.1f}M parameters"
