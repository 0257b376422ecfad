"""The training loop: the same from one CPU to many GPUs."""

import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torchtune import training

from kd_analysis.plots import plot_losses
from kd_training import build, output
from kd_training.config import check_config, component
from kd_training.data import Data, build_data, grouped, skip_to
from kd_training.describe import describe
from kd_training.metrics import METRICS_FILE, Metrics, peak_memory_gib
from kd_training.placement import Placement
from kd_training.recipe_state import load_tensors, newest_state, read_facts, save_state
from kd_training.run_state import Progress, RunState
from kd_training.scaling import DynamicScales
from kd_training.step import NonFiniteError, OptimizerStep
from kd_training.stop_signal import StopSignal
from kd_training.validation import Validator


class Trainer:
    """One run. Creating it checks everything that can be checked without reading a weight.

    Args:
        cfg: The run's config.
        placement: Where the models live.

    Raises:
        ValueError: If the config, the models, the data or the output directory do not fit.
        OSError: If a file is missing or unreadable.
    """

    def __init__(self, cfg: DictConfig, placement: Placement) -> None:
        self.cfg = cfg = check_config(cfg)
        self.placement = placement
        self.dtype = training.get_dtype(cfg.dtype, device=placement.device)
        self.seed = training.set_seed(cfg.seed)
        self.output_dir = Path(cfg.output_dir)
        self.progress = Progress()
        output.check_writable(self.output_dir)

        self.student = build.build_student(cfg, self.dtype)
        self.teacher = build.build_teacher(cfg, self.dtype)
        build.check_vocabularies(cfg)
        ignore_index = build.ignore_index(cfg)
        self.objective = build.build_objective(
            cfg, self.student, self.teacher, placement.device, ignore_index
        )
        self.profiler = build.build_profiler(cfg)
        dynamic = cfg.loss_scaling.dynamic if cfg.loss_scaling.enabled else None
        self.scales = dynamic and DynamicScales(self.objective.weights, dynamic.ema)
        self.checkpointer = build.build_checkpointer(cfg, "checkpointer")
        if self.teacher is not None:
            self.teacher_checkpointer = build.build_checkpointer(cfg, "teacher_checkpointer")
        self.data: Data = build_data(cfg, placement, self.seed, ignore_index)
        self.total_steps = cfg.epochs * self.data.steps_per_epoch
        self.validator = None
        if self.data.val_loader is not None:
            self.validator = Validator(self.objective, self.data.val_loader, placement)
        self.checkpoint = self._find_checkpoint()

    def _find_checkpoint(self) -> Path | None:
        """The checkpoint to go on from; every rank takes the one that rank 0 has found intact."""
        found: tuple[str | None, list[str]] = (None, [])
        if self.cfg.resume_from_checkpoint and self.placement.rank == 0:
            newest, warnings = newest_state(self.output_dir)
            found = (str(newest) if newest else None, warnings)
        chosen, self.warnings = self.placement.gather(found)[0]
        if chosen is None:
            return None
        self.data.check_same(read_facts(Path(chosen))["data"])
        return Path(chosen)

    def load(self) -> None:
        """Read the weights, make optimizer and scheduler, go on from a checkpoint if asked to."""
        cfg, placement = self.cfg, self.placement
        placement.place(self.student, self.checkpointer, self.dtype)
        if self.teacher is not None:
            placement.place_teacher(self.teacher, self.teacher_checkpointer, self.dtype)
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
        scheduler = component(
            cfg.lr_scheduler,
            "lr_scheduler",
            optimizer,
            num_training_steps=self.total_steps,
            last_epoch=-1,
        )
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
        if self.checkpoint is not None:
            self._resume(self.checkpoint)

    def _resume(self, checkpoint: Path) -> None:
        tensors, _ = self.state.tensors_and_facts()
        load_tensors(checkpoint, tensors, self.placement)
        facts = read_facts(checkpoint)
        self.state.load(tensors, facts)
        if facts["pairs"] is not None:
            self.objective.set_pairs([(s, t) for s, t in facts["pairs"]])

    def train(self) -> None:
        """Run all epochs, save a student after each, and draw the loss curves."""
        self._start()
        self.profiler.start()
        try:
            with StopSignal(self.placement) as stop:
                for epoch in range(self.progress.epoch, self.cfg.epochs):
                    self._train_epoch(epoch, stop)
                    self._save_student(epoch)
                    self._save_state()
        finally:
            self.profiler.stop()
            self.metrics.close()
        if self.placement.rank == 0:
            output.write_summary(self.output_dir, self._summary())
            plot_losses(self.output_dir / METRICS_FILE, self.output_dir / "logs" / "loss.png")

    def _start(self) -> None:
        resumed = self.checkpoint is not None
        previous = None
        if self.placement.rank == 0:
            previous = output.start_output(self.cfg, self.output_dir, resumed)
        self.placement.wait()
        self.metrics = Metrics(
            self.cfg,
            self.output_dir,
            self.total_steps,
            self.progress.global_step,
            main=self.placement.rank == 0,
        )
        for warning in self.warnings:
            self.metrics.say(f"warning: {warning}")
        if previous is not None:
            self.metrics.say(f"the earlier run in {self.output_dir} is now in {previous}")
        if resumed:
            self.metrics.say(f"resumed from {self.checkpoint}")
        for line in describe(
            self.cfg, self.student, self.teacher, self.objective.matcher, self.total_steps
        ):
            self.metrics.say(line)

    def _train_epoch(self, epoch: int, stop: StopSignal) -> None:
        cfg, progress = self.cfg, self.progress
        self.student.train()
        skip_to(self.data.loader, epoch, progress.step_in_epoch * self.data.samples_per_step)
        if self.objective.matcher is not None and progress.step_in_epoch == 0:
            pairs = build.pairs_of_epoch(cfg, self.student, self.teacher, epoch)
            self.objective.set_pairs(pairs)
        steps = range(progress.step_in_epoch, self.data.steps_per_epoch)
        groups = grouped(self.data.loader, cfg.gradient_accumulation_steps, self.placement.device)
        start = time.perf_counter()
        for _, micro_batches in zip(steps, groups, strict=False):
            values = self._step(micro_batches)
            self._log(values, time.perf_counter() - start)
            self.profiler.step()
            self._validate(epoch)
            self._save_or_stop(stop)
            start = time.perf_counter()
        progress.epoch, progress.step_in_epoch = epoch + 1, 0

    def _step(self, micro_batches: list[dict[str, torch.Tensor]]) -> dict[str, float]:
        progress = self.progress
        try:
            values = self.step(micro_batches, progress.global_step + 1)
        except NonFiniteError as err:
            if progress.skipped >= self.cfg.skip_nonfinite_steps:
                raise
            self.metrics.say(f"skipped: {err}")
            progress.skipped += 1
            values = {"skipped_steps": float(progress.skipped), "num_tokens": 0.0}
        progress.global_step += 1
        progress.step_in_epoch += 1
        return values

    def _log(self, values: dict[str, float], seconds: float) -> None:
        tokens = values.pop("num_tokens")
        values["tokens_per_second"] = tokens / seconds
        if self.cfg.log_peak_memory_stats:
            values["peak_memory_gib"] = peak_memory_gib(self.placement.device)
        self.progress.seconds += seconds
        self.progress.tokens += tokens
        self.metrics.advance(values)
        if self.progress.global_step % self.cfg.log_every_n_steps == 0:
            self.metrics.log(values, self.progress.global_step)

    def _validate(self, epoch: int) -> None:
        every = self.cfg.run_val_every_n_steps or self.total_steps
        step = self.progress.global_step
        due = step % every == 0 or step == self.total_steps
        if self.validator is None or not due:
            return
        values = self.validator.run(self.student)
        self.metrics.log({f"val/{k}": v for k, v in values.items()}, step)
        if values["total"] < self.progress.best:
            self.progress.best = values["total"]
            if output.keeps_best(self.checkpointer):
                self._save_student(epoch, best=True)

    def _save_or_stop(self, stop: StopSignal) -> None:
        """Save after every n-th step; after a signal save and exit with 128 + its number."""
        every, step = self.cfg.save_every_n_steps, self.progress.global_step
        # An epoch's last step is saved with the epoch.
        ended = self.progress.step_in_epoch == self.data.steps_per_epoch
        received = stop.agreed()
        if received is None:
            if every and step % every == 0 and not ended:
                self._save_state()
            return
        path = self._save_state()
        self.metrics.say(
            f"{received.name} after step {step}: saved {path}; go on with\n"
            f"tune run {self.placement.command} --config {self.output_dir / 'config.yaml'} "
            "resume_from_checkpoint=true"
        )
        raise SystemExit(128 + received)

    def _save_state(self) -> Path:
        tensors, facts = self.state.tensors_and_facts()
        matcher = self.objective.matcher
        facts["pairs"] = matcher and matcher.pairs
        facts["data"] = self.data.facts()
        return save_state(
            self.output_dir,
            self.progress.global_step,
            tensors,
            facts,
            self.placement,
            self.cfg.keep_last_n,
        )

    def _save_student(self, epoch: int, best: bool = False) -> None:
        output.save_student(
            self.student,
            self.checkpointer,
            self.placement,
            epoch,
            last=epoch + 1 == self.cfg.epochs,
            adapter_only=self.cfg.save_adapter_weights_only,
            best=best,
        )

    def _summary(self) -> dict[str, float]:
        progress = self.progress
        return {
            "steps": progress.global_step,
            "label_tokens": progress.tokens,
            "training_seconds": progress.seconds,
            "tokens_per_second": progress.tokens / max(progress.seconds, 1e-9),
            "peak_memory_gib": peak_memory_gib(self.placement.device),
        }


def run(cfg: DictConfig, placement: Placement) -> None:
    """Check, load, train: what a recipe's main does."""
    trainer = Trainer(cfg, placement)
    trainer.load()
    trainer.train()
