"""The training loop: the same from one CPU to many GPUs."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from kd_analysis.model_card import write_model_card
from kd_analysis.plots import plot_losses
from kd_training import output, preflight
from kd_training.data import first_batch, grouped, skip_to
from kd_training.matching import pairs_of_epoch
from kd_training.metrics import METRICS_FILE, Metrics, peak_memory_gib
from kd_training.recipe_state import save_state
from kd_training.step import NonFiniteError
from kd_training.stop_signal import StopSignal

if TYPE_CHECKING:
    from kd_training.trainer import Trainer


class Loop:
    """Epochs of steps, and what happens between them: logs, validation, checkpoints, stopping.

    Args:
        trainer: The run, loaded.
    """

    def __init__(self, trainer: "Trainer") -> None:
        self.trainer, self.cfg, self.progress = trainer, trainer.cfg, trainer.progress
        self.placement, self.data = trainer.placement, trainer.data
        self.matcher = trainer.objective.matcher
        self.newest: dict[str, float] = {}  # the last numbers of each kind, for the model card

    def run(self) -> None:
        """Run all epochs, save a student after each, and draw the loss curves."""
        self._start()
        try:
            self._introduce()
            with self.trainer.profiler, StopSignal(self.placement) as stop:
                for epoch in range(self.progress.epoch, self.cfg.epochs):
                    self._train_epoch(epoch, stop)
                    self._save_student(epoch)
                    self._save_state()
        finally:
            self.metrics.close()
        if self.placement.rank == 0:
            output.write_summary(self.trainer.output_dir, self._summary())
            plot_losses(
                self.trainer.output_dir / METRICS_FILE,
                self.trainer.output_dir / "logs" / "loss.png",
            )

    def _start(self) -> None:
        resumed = self.trainer.checkpoint is not None
        previous = None
        if self.placement.rank == 0:
            previous = output.start_output(self.cfg, self.trainer.output_dir, resumed)
        self.placement.wait()
        self.metrics = Metrics(
            self.cfg,
            self.trainer.output_dir,
            self.trainer.total_steps,
            self.progress.global_step,
            main=self.placement.rank == 0,
        )
        for warning in self.trainer.warnings:
            self.metrics.say(f"warning: {warning}")
        if previous is not None:
            self.metrics.say(f"the earlier run in {self.trainer.output_dir} is now in {previous}")

    def _introduce(self) -> None:
        if self.trainer.checkpoint is not None:
            self.metrics.say(f"resumed from {self.trainer.checkpoint}")
        for line in self.trainer.plan():
            self.metrics.say(line)
        batch = first_batch(self.data.loader, self.placement.device)
        trainer = self.trainer
        for warning in preflight.check_weights(
            trainer.student, trainer.teacher, batch, trainer.objective.ignore_index
        ):
            self.metrics.say(f"warning: {warning}")

    def _train_epoch(self, epoch: int, stop: StopSignal) -> None:
        cfg, progress = self.cfg, self.progress
        self.trainer.student.train()
        skip_to(self.data.loader, epoch, progress.step_in_epoch * self.data.samples_per_step)
        if self.matcher is not None and progress.step_in_epoch == 0:
            pairs = pairs_of_epoch(cfg, self.trainer.student, self.trainer.teacher, epoch)
            self.trainer.objective.set_pairs(pairs)
        steps = range(progress.step_in_epoch, self.data.steps_per_epoch)
        groups = grouped(self.data.loader, cfg.gradient_accumulation_steps, self.placement.device)
        start = time.perf_counter()
        for _, micro_batches in zip(steps, groups, strict=False):
            values = self._step(micro_batches)
            self._log(values, time.perf_counter() - start)
            self.trainer.profiler.step()
            self._validate(epoch)
            self._save_or_stop(stop)
            start = time.perf_counter()
        progress.epoch, progress.step_in_epoch = epoch + 1, 0

    def _step(self, micro_batches: list[dict[str, Tensor]]) -> dict[str, float]:
        progress = self.progress
        try:
            values = self.trainer.step(micro_batches, progress.global_step + 1)
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
        self.newest |= values
        self.metrics.advance(values)
        if self.progress.global_step % self.cfg.log_every_n_steps == 0:
            self.metrics.log(values, self.progress.global_step)

    def _validate(self, epoch: int) -> None:
        every = self.cfg.run_val_every_n_steps or self.trainer.total_steps
        step = self.progress.global_step
        due = step % every == 0 or step == self.trainer.total_steps
        if self.trainer.validator is None or not due:
            return
        values = self.trainer.validator.run(self.trainer.student)
        named = {f"val/{k}": v for k, v in values.items()}
        self.newest |= named
        self.metrics.log(named, step)
        if values["total"] < self.progress.best:
            self.progress.best = values["total"]
            if output.keeps_best(self.trainer.checkpointer):
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
            f"tune run {self.placement.command} --config {self.trainer.output_dir / 'config.yaml'} "
            "resume_from_checkpoint=true"
        )
        raise SystemExit(128 + received)

    def _save_state(self) -> Path:
        tensors, facts = self.trainer.state.tensors_and_facts()
        facts["pairs"] = self.matcher and self.matcher.pairs
        facts["data"], facts["seed"] = self.data.facts(), self.trainer.seed
        return save_state(
            self.trainer.output_dir,
            self.progress.global_step,
            tensors,
            facts,
            self.placement,
            self.cfg.keep_last_n,
        )

    def _save_student(self, epoch: int, best: bool = False) -> None:
        directory = output.save_student(
            self.trainer.student,
            self.trainer.checkpointer,
            self.placement,
            epoch,
            self.trainer.dtype,
            last=epoch + 1 == self.cfg.epochs,
            adapter_only=self.cfg.save_adapter_weights_only,
            best=best,
        )
        if directory is not None and not self.cfg.save_adapter_weights_only:
            pairs = None if self.matcher is None else self.matcher.pairs
            write_model_card(directory, self.cfg, self.newest | self._summary(), pairs)

    def _summary(self) -> dict[str, float]:
        progress = self.progress
        return {
            "steps": progress.global_step,
            "label_tokens": progress.tokens,
            "training_seconds": progress.seconds,
            "tokens_per_second": progress.tokens / max(progress.seconds, 1e-9),
            "peak_memory_gib": peak_memory_gib(self.placement.device),
        }
