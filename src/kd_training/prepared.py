"""A run in typed parts: all that a config has come to, checked, with no weight read yet."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hf_models.model import Model
from kd_data.sources import Source
from kd_teachers import Teacher
from kd_training.checkpoint.facts import Facts
from kd_training.checkpoint.run_state import Progress
from kd_training.objective.objective import Objective
from kd_training.objective.scales import DynamicScales
from kd_training.output.student import Export
from kd_training.placement.one_device import Placement
from kd_training.validation import Validator


@dataclass(frozen=True)
class Schedule:
    """When what happens, in optimizer steps.

    Attributes:
        epochs: Passes over the source.
        log_every: Numbers are logged after each n-th step.
        validate_every: Validation after each n-th step, and after the last; None: only then.
        validate_first: Whether there is one before the first step.
        save_every: Checkpoints after each n-th step besides those of the epochs; None for none.
        keep_last_n: Checkpoints that stay.
        skip_nonfinite: Steps with a NaN or infinite gradient that may be passed over.
    """

    epochs: int
    log_every: int
    validate_every: int | None
    validate_first: bool
    save_every: int | None
    keep_last_n: int
    skip_nonfinite: int


@dataclass(frozen=True)
class Optimization:
    """How weights change.

    Attributes:
        optimizer: Makes it over groups of parameters.
        scheduler: Makes its schedule, or None, for a number of steps.
        terms_lr: Learning rate of what the objective's terms train of their own; None: the same.
        max_norm: The gradient is clipped to it; None: never.
    """

    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    scheduler: Callable[[torch.optim.Optimizer, int], Any]
    terms_lr: float | None
    max_norm: float | None


@dataclass(frozen=True)
class Records:
    """What a run writes down, and where.

    Attributes:
        directory: The run's ``output_dir``.
        config: What its config.yaml says.
        make_loggers: Makes the configured loggers, which know the config then.
        profiler: torchtune's.
        peak_memory: Whether each step's peak memory is logged.
        plan: Makes the lines that tell people about the run.
        export: Writes students.
    """

    directory: Path
    config: str
    make_loggers: Callable[[], list[Any]]
    profiler: Any
    peak_memory: bool
    plan: Callable[[], list[str]]
    export: Export


@dataclass
class Run:
    """Everything that `train` needs.

    Attributes:
        placement: Where the models live.
        student: What learns, on the meta device until it is loaded.
        teacher: Who is asked; None where nobody is.
        objective: What is minimised.
        source: Where micro-batches come from.
        checkpointer: Reads the student's weights, once everything fits; also what exports it.
        validator: The held-out objective; None without validation.
        scales: Weights that follow the terms' magnitudes; None for fixed ones.
        checkpoint: What the run goes on from; None to start.
        facts: What that checkpoint knows.
        warnings: What a person should know before the first step.
    """

    placement: Placement
    seed: int
    student: Model
    teacher: Teacher | None
    objective: Objective
    source: Source
    validator: Validator | None
    scales: DynamicScales | None
    schedule: Schedule
    checkpointer: Any
    optimization: Optimization
    records: Records
    checkpoint: Path | None = None
    facts: Facts | None = None
    warnings: list[str] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.schedule.epochs * self.source.steps_per_epoch
