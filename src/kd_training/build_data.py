"""From the config's datasets to the steps of a run and its held-out measure."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from hf_models.model import ModelFacts
from kd_config.schema import RunConfig
from kd_data import Batch
from kd_data.loaders import Batching, collate_with, train_source, val_loader
from kd_data.routing import Routed, named_teachers, with_routes
from kd_data.samples import build_samples
from kd_data.sources import DatasetSource
from kd_data.teacher_prompt import TeacherPrompt, teacher_prompt
from kd_training.objective.objective import Objective
from kd_training.placement.one_device import Placement
from kd_training.validation import Validator

Tokenizers = tuple[Any, Any]  # the student's, and that of a teacher with one of its own or None
# What a validation's total depends on, besides its samples, the terms' weights and the student.
_MEASURE = (
    "kd_loss",
    "prompt_kd_loss",
    "ir_loss",
    "layer_mapping",
    "layer_projection",
    "token_scope",
    "terms",
    "teacher_model",
    "teacher_checkpointer",
    "teacher_quantization",
    "teacher_prompt",
    "teacher_cache",
    "teacher_server",
    "teachers",
    "teacher_average",
)


def build_source(
    config: RunConfig,
    placement: Placement,
    seed: int,
    tokenizers: Tokenizers,
    ignore: int,
    objective: Objective,
) -> DatasetSource:
    """The steps of ``dataset``.

    Raises:
        ValueError: If it cannot be built, or does not fill a step.
    """
    facts = objective.student.facts
    to_batch = batches_of(config, facts, tokenizers, ignore)
    if config.on_policy is None:  # else it is asked when the text is known
        to_batch = objective.read_ahead(to_batch)
    dataset = _samples(config, "dataset", tokenizers, ignore, facts)
    batching = Batching(
        batch_size=config.batch_size,
        accumulation=config.gradient_accumulation_steps,
        shuffle=config.shuffle,
        seed=seed,
        group_by_length=config.group_by_length,
        max_steps=config.max_steps_per_epoch,
        num_workers=config.num_workers,
        ahead=placement.device.type != "cpu",
    )
    return train_source(dataset, batching, placement, to_batch, ignore)


def build_validator(
    config: RunConfig,
    placement: Placement,
    objective: Objective,
    tokenizers: Tokenizers,
    ignore: int,
) -> Validator | None:
    """The objective on ``dataset_val``; None without it.

    Raises:
        ValueError: If the dataset cannot be built.
    """
    if config.dataset_val is None:
        return None
    facts = objective.student.facts
    loader = val_loader(
        _samples(config, "dataset_val", tokenizers, ignore, facts),
        config.batch_size_val or config.batch_size,
        placement,
        objective.read_ahead(batches_of(config, facts, tokenizers, ignore)),
        config.num_workers,
    )
    measured_by = json.dumps([config.plain(_MEASURE), objective.weights], sort_keys=True)
    return Validator(objective, loader, placement, measured_by)


def batches_of(
    config: RunConfig, facts: ModelFacts, tokenizers: Tokenizers, ignore: int
) -> Callable[[Sequence[Any]], Batch]:
    """Makes batches with the routes of their samples, and what the teacher reads besides.

    Raises:
        ValueError: If ``teacher_prompt`` cannot be rendered.
    """
    to_batch = collate_with(facts, *tokenizers, ignore)
    prompt = prompt_of(config, tokenizers[0], ignore)
    return partial(with_routes, to_batch if prompt is None else prompt.batches(to_batch))


def prompt_of(config: RunConfig, tokenizer: Any, ignore: int) -> TeacherPrompt | None:
    """What only the teacher reads, if anything.

    Raises:
        ValueError: If ``teacher_prompt`` cannot be rendered.
    """
    if config.teacher_prompt is None:
        return None
    return teacher_prompt(config.teacher_prompt, tokenizer, ignore)


def _samples(
    config: RunConfig, key: str, tokenizers: Tokenizers, ignore: int, facts: ModelFacts
) -> Any:
    """The samples of a key, routed where there are several teachers and rows name theirs."""
    prompts = config.on_policy is not None and config.on_policy.fraction == 1
    samples = build_samples(
        getattr(config, key), key, *tokenizers, ignore, facts, labelled=not prompts
    )
    if not config.teachers:
        return samples
    try:
        names = named_teachers(samples)
        return samples if names is None else Routed(samples, names, list(config.teachers))
    except ValueError as err:
        raise ValueError(f"config: {key}: {err}") from err
