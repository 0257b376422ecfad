"""A run from its config: checked, loaded, trained."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torchtune import training

from kd_config.check import check_config, component
from kd_config.kinds import expect
from kd_data.samples import build_tokenizers
from kd_data.sources import Data, build_data
from kd_data.workers import about_lost_worker
from kd_training import build
from kd_training.checkpoint.facts import Facts, read_facts
from kd_training.checkpoint.files import STATE_DIR, has_exported, newest_state
from kd_training.checkpoint.run_state import Progress, RunState
from kd_training.checkpoint.tensors import load_tensors
from kd_training.describe import describe
from kd_training.loop import Loop
from kd_training.objective.scaling import DynamicScales
from kd_training.output import directory
from kd_training.output.lock import locked
from kd_training.output.metrics import peak_memory_gib
from kd_training.placement.one_device import Placement
from kd_training.preflight import estimates
from kd_training.preflight.same_model import (
    check_model_configs,
    check_output,
    check_tokenizers,
    prepare_export,
)
from kd_training.preflight.sources import check_sources
from kd_training.step import OptimizerStep
from kd_training.validation import Validator


class Trainer:
    """One run. Creating it checks everything that can be checked without reading a weight.

    Args:
        cfg: The run's config, checked.
        placement: Where the models live.

    Raises:
        ValueError: If the config, the models, the data or the output directory do not fit.
        OSError: If a file is missing or unreadable.
    """

    def __init__(self, cfg: DictConfig, placement: Placement) -> None:
        check_output(cfg)
        self.cfg, self.placement = cfg, placement
        self.dtype = training.get_dtype(cfg.dtype, device=placement.device)
        self.output_dir = Path(cfg.output_dir)
        self.progress = Progress()
        directory.check_shared(self.output_dir, placement)
        self.checkpoint = self._find_checkpoint()
        self._facts = facts = self._read_checkpoint()
        # Without a seed one is drawn, once.
        drawn = facts["seed"] if facts and cfg.seed is None else cfg.seed
        self.seed = training.set_seed(drawn)
        check_sources(cfg, directory.replaced_files(cfg, facts["progress"] if facts else None))

        self.student = build.build_student(cfg, self.dtype)
        estimates.check_disk(cfg, self.student, self.dtype, self.output_dir)
        self.teacher = build.build_teacher(cfg, self.dtype)
        estimates.check_length(cfg, self.student, self.teacher)
        self.quantization = build.build_quantization(cfg)
        check_model_configs(cfg, with_teacher=self.teacher is not None)
        tokenizers = build_tokenizers(cfg)
        check_tokenizers(cfg, self.student, self.teacher, *tokenizers)
        ignore_index = build.ignore_index(cfg)
        self.objective = build.build_objective(
            cfg, self.student, self.teacher, placement.device, ignore_index
        )
        self.profiler = build.build_profiler(cfg)
        dynamic = cfg.loss_scaling.dynamic if cfg.loss_scaling.enabled else None
        self.scales = dynamic and DynamicScales(
            self.objective.weights, dynamic.ema, dynamic.max_weight
        )
        self.checkpointer = build.build_checkpointer(cfg, "checkpointer")
        prepare_export(cfg, self.checkpointer)
        if self.teacher is not None:
            self.teacher_checkpointer = build.build_checkpointer(cfg, "teacher_checkpointer")
        self.data: Data = build_data(cfg, placement, self.seed, ignore_index, *tokenizers)
        self.total_steps = cfg.epochs * self.data.steps_per_epoch
        self.validator = None
        if self.data.val_loader is not None:
            self.validator = Validator(self.objective, self.data.val_loader, placement)
        if facts:
            self.data.check_same(facts["data"])

    def _find_checkpoint(self) -> Path | None:
        """The checkpoint to go on from; every rank takes the one that rank 0 has found intact."""
        found: tuple[str | None, list[str]] = (None, [])
        if self.cfg.resume_from_checkpoint and self.placement.rank == 0:
            newest, warnings = newest_state(self.output_dir)
            if newest is None:
                warnings.append(
                    f"resume_from_checkpoint is true, but {self.output_dir / STATE_DIR} has no "
                    "checkpoint: starting at step 0"
                )
            found = (str(newest) if newest else None, warnings)
        chosen, self.warnings = self.placement.gather(found)[0]
        return Path(chosen) if chosen else None

    def _read_checkpoint(self) -> Facts | None:
        """What the checkpoint knows, and what has been done since about what it owes."""
        if self.checkpoint is None:
            return None
        facts = read_facts(self.checkpoint)
        if has_exported(self.checkpoint):
            facts["progress"]["owed"] = None
        return facts

    def load(self) -> None:
        """Read the weights, make optimizer and scheduler, go on from a checkpoint if asked to."""
        cfg, placement = self.cfg, self.placement
        placement.place(self.student, self.checkpointer)
        if self.teacher is not None:
            placement.place_teacher(self.teacher, self.teacher_checkpointer, self.quantization)
        trainable = nn.ModuleDict({"student": self.student})
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": parameters}]
        if self.objective.matcher is not None:
            placement.place_module(self.objective.matcher)
            trainable["matcher"] = self.objective.matcher
            projections = list(self.objective.matcher.parameters())
            lr = cfg.layer_projection.lr
            if projections:
                groups.append({"params": projections} | ({} if lr is None else {"lr": lr}))
                parameters = parameters + projections
        optimizer = component(cfg.optimizer, "optimizer", groups)
        build.check_optimizer(optimizer)
        scheduler = component(
            cfg.lr_scheduler,
            "lr_scheduler",
            optimizer,
            num_training_steps=self.total_steps,
            last_epoch=-1,
        )
        fits = scheduler is None or hasattr(scheduler, "step")
        expect(fits, cfg, "lr_scheduler", "a learning rate scheduler")
        self.step = OptimizerStep(
            self.objective,
            placement,
            optimizer,
            scheduler,
            parameters,
            self.scales,
            cfg.clip_grad_norm,
            self.output_dir / "logs",
        )
        self.state = RunState(
            trainable, optimizer, scheduler, self.scales, self.progress, placement
        )
        if self.checkpoint is not None and self._facts is not None:
            self._resume(self.checkpoint, self._facts)

    def _resume(self, checkpoint: Path, facts: Facts) -> None:
        tensors, _ = self.state.tensors_and_facts()
        load_tensors(checkpoint, tensors, self.placement)
        self.state.load(tensors, facts)
        if facts["pairs"] is not None:
            self.objective.set_pairs([(s, t) for s, t in facts["pairs"]])

    def train(self) -> None:
        """Run all epochs."""
        Loop(self).run()

    def plan(self) -> list[str]:
        """The run in a few lines, for people."""
        cfg = self.cfg
        lines = describe(cfg, self.student, self.teacher, self.objective.matcher, self.data)
        memory = estimates.estimate_memory(
            cfg, self.student, self.teacher, self.dtype, self.placement
        )
        return [*lines, memory.line(self.placement.device)]


def run(cfg: DictConfig, placement: Placement) -> None:
    """Check, load, train: what a recipe's main does. With ``dry_run`` it ends after the checks.

    Raises:
        ValueError: If the config, the models, the data or the output directory do not fit, or
            another run has that directory.
        OSError: If a file is missing, unreadable or cannot be written.
    """
    cfg = check_config(cfg)
    output_dir = Path(cfg.output_dir)
    directory.check_writable(output_dir)
    # The ranks meet before any of them looks at what is there.
    owner = placement.rank == 0 and not cfg.dry_run
    with locked(output_dir) if owner else nullcontext():
        if owner:
            directory.mend(output_dir)
        trainer = Trainer(cfg, placement)
        if not cfg.dry_run:
            _train(trainer)
        elif placement.rank == 0:
            warnings = [f"warning: {warning}" for warning in trainer.warnings]
            end = "dry run: the config, the data and the files fit"
            print("\n".join([*warnings, *trainer.plan(), end]))


def _train(trainer: Trainer) -> None:
    try:
        trainer.load()
        trainer.train()
    except RuntimeError as err:
        lost = about_lost_worker(err)
        if lost is not None:
            raise ValueError(lost) from err
        # A CPU's allocator raises a plain RuntimeError.
        if not isinstance(err, torch.OutOfMemoryError) and "can't allocate memory" not in str(err):
            raise
        device = trainer.placement.device
        raise ValueError(
            f"out of memory on {device} after step {trainer.progress.global_step}, at a "
            f"peak of {peak_memory_gib(device):.1f} GiB: lower batch_size (and raise "
            "gradient_accumulation_steps) or tokenizer.max_seq_len, raise "
            "loss.num_output_chunks, or set enable_activation_checkpointing=true "
            "(and enable_activation_offloading=true)"
        ) from err
