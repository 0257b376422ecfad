"""From a config to a run in typed parts. Behind this nobody reads a config by its keys."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

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
from kd_config.weights import loss_weights
from kd_teachers import Teacher, check_needs
from kd_training import build
from kd_training.build_data import batches_of
from kd_training.build_teacher import build_teacher
from kd_training.checkpoint.facts import Facts
from kd_training.checkpoint.resume import find_checkpoint, read_checkpoint
from kd_training.objective.objective import Objective
from kd_training.objective.parts import Parts
from kd_training.objective.registry import build_terms
from kd_training.objective.scales import DynamicScales
from kd_training.output import directory
from kd_training.output.student import Export
from kd_training.placement.one_device import Placement
from kd_training.preflight import estimates, same_model
from kd_training.preflight.caches import check_caches, check_documents
from kd_training.preflight.plan import plan
from kd_training.preflight.sources import check_sources
from kd_training.preflight.two_tokenizers import check_two_tokenizers
from kd_training.prepare_data import build_data, build_tokenizers
from kd_training.prepared import Optimization, Records, Run, Schedule


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
    resuming = _look_at_output(config, placement)
    # Without a seed one is drawn, once.
    facts = resuming.facts
    seed = training.set_seed(facts["seed"] if facts and config.seed is None else config.seed)
    dtype = training.get_dtype(config.dtype, device=placement.device)
    student = build.build_student(config, dtype)
    estimates.check_disk(config, student, dtype)
    ignore = build.ignore_index(config)
    objective, teacher = _build_objective(config, student, dtype, placement, ignore)
    tokenizers = build_tokenizers(config, student, teacher)
    own, notes = build.build_checkpointer(config.checkpointer, "checkpointer", student)
    hidden_base = from_environment(cfg, "checkpointer.checkpoint_dir")
    same_model.prepare_export(config, own, hidden_base)
    notes += check_caches(config, teacher, dtype, placement)
    source, validator, more = build_data(config, placement, seed, tokenizers, objective, own)
    notes += more
    if facts:
        source.check_same(facts["source"])
    datasets = {"dataset": source.dataset}
    datasets |= {} if validator is None else {"dataset_val": validator.dataset}
    to_batch = batches_of(config, student.facts, tokenizers, ignore)
    check_documents(teacher, datasets, to_batch, placement)
    lines = partial(plan, config, student, teacher, objective.terms, source, dtype, placement)
    card = card_facts(cfg, with_teacher=teacher is not None, task=student.facts.task)
    return Run(
        placement=placement,
        seed=seed,
        student=student,
        teacher=teacher,
        objective=objective,
        source=source,
        validator=validator,
        scales=_dynamic_scales(config, objective.weights),
        schedule=_schedule(config),
        checkpointer=own,
        optimization=_optimization(config),
        records=_records(
            config,
            cfg,
            lines,
            Export(own, dtype, config.epochs, config.save_adapter_weights_only, card),
        ),
        checkpoint=resuming.checkpoint,
        facts=facts,
        warnings=[*resuming.warnings, *notes],
    )


class _Resuming(NamedTuple):
    checkpoint: Path | None
    facts: Facts | None
    warnings: list[str]


def _look_at_output(config: RunConfig, placement: Placement) -> _Resuming:
    """What there is to go on from; nothing that the run reads may be what it writes over."""
    same_model.check_output(config)
    output_dir = Path(config.output_dir)
    directory.check_shared(output_dir, placement)
    wanted = config.resume_from_checkpoint
    checkpoint, warnings = find_checkpoint(output_dir, wanted, placement)
    facts = read_checkpoint(checkpoint)
    progress = facts["progress"] if facts else None
    check_sources(config, directory.replaced_files(output_dir, config.epochs, progress))
    return _Resuming(checkpoint, facts, warnings)


def _build_objective(
    config: RunConfig, student: Model, dtype: torch.dtype, placement: Placement, ignore: int
) -> tuple[Objective, Teacher | None]:
    """The objective, and the teacher if any of its terms has to ask one."""
    weights = loss_weights(config)
    find_teacher = cache(partial(build_teacher, config, student, dtype))
    parts = Parts(config, weights, student.facts, find_teacher, placement.device, ignore)
    terms = build_terms(parts)
    check_two_tokenizers(parts, terms)
    teacher = find_teacher() if any(term.needs for term in terms) else None
    if teacher is not None:
        for term in terms:
            check_needs(teacher, term.name, term.needs)
    num_chunks = argument(config.loss, "num_output_chunks")
    return Objective(student, teacher, terms, weights, ignore, num_chunks), teacher


def _dynamic_scales(config: RunConfig, weights: Mapping[str, float]) -> DynamicScales | None:
    dynamic = config.loss_scaling.dynamic if config.loss_scaling.enabled else None
    return None if dynamic is None else DynamicScales(weights, dynamic.ema, dynamic.max_weight)


def _schedule(config: RunConfig) -> Schedule:
    return Schedule(
        epochs=config.epochs,
        log_every=config.log_every_n_steps,
        validate_every=config.run_val_every_n_steps,
        validate_first=config.run_val_at_start,
        save_every=config.save_every_n_steps,
        keep_last_n=config.keep_last_n,
        skip_nonfinite=config.skip_nonfinite_steps,
    )


def _optimization(config: RunConfig) -> Optimization:
    return Optimization(
        optimizer=partial(build.build_optimizer, config.optimizer),
        scheduler=partial(build.build_scheduler, config.lr_scheduler),
        terms_lr=config.layer_projection.lr,
        max_norm=config.clip_grad_norm,
    )


def _records(
    config: RunConfig, cfg: DictConfig, lines: Callable[[], list[str]], export: Export
) -> Records:
    return Records(
        directory=Path(config.output_dir),
        config=OmegaConf.to_yaml(cfg),
        make_loggers=partial(make_loggers, cfg),
        profiler=build.build_profiler(config),
        peak_memory=config.log_peak_memory_stats,
        plan=lines,
        export=export,
    )
