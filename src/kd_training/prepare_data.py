"""What a run reads: tokenizers, the steps, the held-out measure."""

from typing import Any

from hf_models.model import Model, ModelFacts
from kd_config.schema import RunConfig
from kd_data.samples import build_tokenizer
from kd_data.sources import Source
from kd_teachers import Teacher, live_models
from kd_training import build
from kd_training.build_data import (
    Tokenizers,
    batches_of,
    build_source,
    build_validator,
    prompt_of,
)
from kd_training.objective.objective import Objective
from kd_training.on_policy.build import build_measure, build_writing, find_ends
from kd_training.on_policy.measure import NAME
from kd_training.on_policy.source import OnPolicySource
from kd_training.placement.one_device import Placement
from kd_training.preflight import estimates, same_model
from kd_training.preflight.on_policy import check_on_policy
from kd_training.preflight.same_task import check_same_task
from kd_training.preflight.teacher_prompt import check_room, check_teacher_prompt
from kd_training.validation import Validator


def build_tokenizers(config: RunConfig, student: Model, teacher: Teacher | None) -> Tokenizers:
    """Both tokenizers, seen to belong to the models and their files."""
    members = {} if teacher is None else teacher.members()
    facts: dict[str, ModelFacts] = {key: one.facts for key, one in members.items()}
    check_same_task(config, student.facts, facts)
    check_teacher_prompt(config, student.facts)
    estimates.check_length(config, student.facts, facts)
    same_model.check_model_configs(config, live_models(teacher))
    own = build_tokenizer(config.tokenizer, "tokenizer")
    teachers = build_tokenizer(config.teacher_tokenizer, "teacher_tokenizer")
    same_model.check_tokenizers(config, student.facts, facts, own, teachers)
    prompt = prompt_of(config, own, build.ignore_index(config))
    if prompt is not None:
        check_room(config, prompt, facts or {"model": student.facts})
    return own, teachers


def build_data(
    config: RunConfig,
    placement: Placement,
    seed: int,
    tokenizers: Tokenizers,
    objective: Objective,
    checkpointer: Any,
) -> tuple[Source, Validator | None, list[str]]:
    """The steps and the held-out measure, with the student's own text where the config asks for it.

    Returns:
        Both, and what a person should know.
    """
    ignore = objective.ignore_index
    given = build_source(config, placement, seed, tokenizers, ignore, objective)
    validator = build_validator(config, placement, objective, tokenizers, ignore)
    if config.on_policy is None:
        return given, validator, []
    check_on_policy(config, objective)
    ends = find_ends(config, objective, tokenizers[0], checkpointer)
    to_batch = batches_of(config, objective.student.facts, tokenizers, ignore)
    writing = build_writing(
        config, placement, seed, objective, tokenizers[0], ends, to_batch, ignore
    )
    if validator is not None:
        measure = build_measure(config, writing, objective, validator.dataset, placement)
        if measure is not None:
            validator.further = measure
            # Where all that is trained on is its own text, this is what the run is about.
            validator.judged_by = NAME if config.on_policy.fraction == 1 else validator.judged_by
    source = OnPolicySource(
        given, writing.completed, config.on_policy.fraction, writing.watch, seed
    )
    return source, validator, ends.notes
