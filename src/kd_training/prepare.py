"""From a config to a run in typed parts. Behind this nobody reads a config by its keys."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torchtune import training

from hf_models.model import Model
from kd_config.card import card_facts
from kd_config.check import check_config, typed
from kd_config.components import argument
from kd_config.loggers import make_loggers
from kd_config.public import from_environment
from kd_config.schema import RunConfig
from kd_config.weights import loss_weights, needs_teacher
from kd_data.loaders import Batching, collate_with, train_source, val_loader
from kd_data.samples import build_samples, build_tokenizer
from kd_data.sources import DatasetSource
from kd_teachers import Live, check_needs
from kd_training import build
from kd_training.checkpoint.facts import Facts, read_facts
from kd_training.checkpoint.files import STATE_DIR, has_exported, newest_state
from kd_training.objective.objective import Objective
from kd_training.objective.parts import Parts
from kd_training.objective.registry import build_terms
from kd_training.objective.scales import DynamicScales
from kd_training.output import directory
from kd_training.output.student import Export
from kd_training.placement.one_device import Placement
from kd_training.preflight import estimates, same_model
from kd_training.preflight.plan import plan
from kd_training.preflight.sources import check_sources
from kd_training.preflight.two_tokenizers import check_two_tokenizers
from kd_training.prepared import Loading, Optimization, Records, Run, Schedule
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
)


def prepare(cfg: DictConfig, placement: Placement) -> Run:
    """Check everything that can be checked without reading a weight, and build what is trained.

    Args:
        cfg: A config as it is written.
        placement: Where the models will live.

    Raises:
        ValueError: If the config, the models, the data or the output directory do not fit.
        OSError: If a file is missing or unreadable.
    """
    cfg = check_config(cfg)
    config = typed(cfg)
    same_model.check_output(config)
    output_dir = Path(config.output_dir)
    directory.check_shared(output_dir, placement)
    checkpoint, warnings = _find_checkpoint(config, placement)
    facts = _read_checkpoint(checkpoint)
    # Without a seed one is drawn, once.
    seed = training.set_seed(facts["seed"] if facts and config.seed is None else config.seed)
    progress = facts["progress"] if facts else None
    check_sources(config, directory.replaced_files(output_dir, config.epochs, progress))

    dtype = training.get_dtype(config.dtype, device=placement.device)
    weights = loss_weights(config)
    student, teacher = _build_models(config, dtype)
    quantization = build.build_quantization(config)
    same_model.check_model_configs(config, with_teacher=teacher is not None)
    tokenizers = (
        build_tokenizer(config.tokenizer, "tokenizer"),
        build_tokenizer(config.teacher_tokenizer, "teacher_tokenizer"),
    )
    same_model.check_tokenizers(config, student, teacher, *tokenizers)
    ignore = build.ignore_index(config)
    objective = _build_objective(config, weights, student, teacher, placement, ignore)
    weights = objective.weights
    profiler = build.build_profiler(config)
    checkpointers = _build_checkpointers(config, cfg, with_teacher=teacher is not None)
    source = _build_source(config, placement, seed, tokenizers, ignore)
    validator = _build_validator(config, placement, objective, tokenizers, ignore)
    if facts:
        source.check_same(facts["source"])
    return Run(
        placement,
        seed,
        student,
        teacher,
        objective,
        source,
        validator,
        _dynamic_scales(config, weights),
        _schedule(config),
        Loading(*checkpointers, quantization),
        _optimization(config),
        Records(
            output_dir,
            OmegaConf.to_yaml(cfg),
            partial(make_loggers, cfg),
            profiler,
            config.log_peak_memory_stats,
            partial(plan, config, student, teacher, objective.terms, source, dtype, placement),
            Export(
                checkpointers[0],
                dtype,
                config.epochs,
                config.save_adapter_weights_only,
                card_facts(cfg, with_teacher=teacher is not None),
            ),
        ),
        checkpoint,
        facts,
        warnings,
    )


def _find_checkpoint(config: RunConfig, placement: Placement) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from; every rank takes the one that rank 0 has found intact."""
    found: tuple[str | None, list[str]] = (None, [])
    if config.resume_from_checkpoint and placement.rank == 0:
        output_dir = Path(config.output_dir)
        newest, warnings = newest_state(output_dir)
        if newest is None:
            warnings.append(
                f"resume_from_checkpoint is true, but {output_dir / STATE_DIR} has no "
                "checkpoint: starting at step 0"
            )
        found = (str(newest) if newest else None, warnings)
    chosen, warnings = placement.gather(found)[0]
    return Path(chosen) if chosen else None, warnings


def _read_checkpoint(checkpoint: Path | None) -> Facts | None:
    """What the checkpoint knows, and what has been done since about what it owes."""
    if checkpoint is None:
        return None
    facts = read_facts(checkpoint)
    if has_exported(checkpoint):
        facts["progress"]["owed"] = None
    return facts


def _build_models(config: RunConfig, dtype: torch.dtype) -> tuple[Model, Model | None]:
    student = build.build_student(config, dtype)
    estimates.check_disk(config, student, dtype)
    teacher = build.build_teacher(config, dtype) if needs_teacher(config) else None
    estimates.check_length(config, student, teacher)
    return student, teacher


def _build_objective(
    config: RunConfig,
    weights: Mapping[str, float],
    student: Model,
    teacher: Model | None,
    placement: Placement,
    ignore: int,
) -> Objective:
    parts = Parts(
        config,
        weights,
        student.facts,
        None if teacher is None else teacher.facts,
        placement.device,
        ignore,
    )
    check_two_tokenizers(parts)
    terms = build_terms(parts)
    asked = None if teacher is None else Live(teacher)
    if asked is not None:
        for term in terms:
            check_needs(asked, term.name, term.needs)
    num_chunks = argument(config.loss, "num_output_chunks")
    return Objective(student, asked, terms, weights, ignore, num_chunks)


def _build_checkpointers(config: RunConfig, cfg: DictConfig, with_teacher: bool) -> tuple[Any, Any]:
    student = build.build_checkpointer(config, "checkpointer")
    hidden_base = from_environment(cfg, "checkpointer.checkpoint_dir")
    same_model.prepare_export(config, student, hidden_base)
    if not with_teacher:
        return student, None
    return student, build.build_checkpointer(config, "teacher_checkpointer")


def _build_source(
    config: RunConfig, placement: Placement, seed: int, tokenizers: Tokenizers, ignore: int
) -> DatasetSource:
    to_batch = collate_with(*tokenizers, ignore)
    dataset = build_samples(config.dataset, "dataset", *tokenizers, ignore)
    batching = Batching(
        config.batch_size,
        config.gradient_accumulation_steps,
        config.shuffle,
        seed,
        config.group_by_length,
        config.max_steps_per_epoch,
        config.num_workers,
    )
    return train_source(dataset, batching, placement, to_batch, ignore)


def _build_validator(
    config: RunConfig,
    placement: Placement,
    objective: Objective,
    tokenizers: Tokenizers,
    ignore: int,
) -> Validator | None:
    if config.dataset_val is None:
        return None
    loader = val_loader(
        build_samples(config.dataset_val, "dataset_val", *tokenizers, ignore),
        config.batch_size_val or config.batch_size,
        placement,
        collate_with(*tokenizers, ignore),
        config.num_workers,
    )
    measured_by = json.dumps([config.plain(_MEASURE), objective.weights], sort_keys=True)
    return Validator(objective, loader, placement, measured_by)


def _dynamic_scales(config: RunConfig, weights: Mapping[str, float]) -> DynamicScales | None:
    dynamic = config.loss_scaling.dynamic if config.loss_scaling.enabled else None
    return None if dynamic is None else DynamicScales(weights, dynamic.ema, dynamic.max_weight)


def _schedule(config: RunConfig) -> Schedule:
    return Schedule(
        config.epochs,
        config.log_every_n_steps,
        config.run_val_every_n_steps,
        config.save_every_n_steps,
        config.keep_last_n,
        config.skip_nonfinite_steps,
    )


def _optimization(config: RunConfig) -> Optimization:
    return Optimization(
        partial(build.build_optimizer, config.optimizer),
        partial(build.build_scheduler, config.lr_scheduler),
        config.layer_projection.lr,
        config.clip_grad_norm,
    )
