"""The training loop: the same from one CPU to many GPUs."""

import math
import time
from typing import TYPE_CHECKING

from torch import Tensor

from kd_data.sources import first_batch, grouped, skip_to
from kd_training.objective.matching import pairs_of_epoch
from kd_training.output import directory
from kd_training.output.loss_plot import plot_losses
from kd_training.output.metrics import METRICS_FILE, Metrics, peak_memory_gib
from kd_training.placement.writing import WriteError
from kd_training.preflight import estimates
from kd_training.saving import Saving
from kd_training.step import NonFiniteError
from kd_training.stop_signal import StopSignal
from kd_training.validation import measure

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

    def run(self) -> None:
        """Run all epochs, save a student after each, and draw the loss curves."""
        self._start()
        try:
            self._introduce()
            with self.trainer.profiler, StopSignal(self.placement) as stop:
                self.saving.owed()
                for epoch in range(self.progress.epoch, self.cfg.epochs):
                    self._train_epoch(epoch, stop)
                    self.saving.epoch()
        except WriteError as err:
            raise OSError(f"{err}; {self.saving.checkpoints.way_on()}") from err
        finally:
            self.metrics.close()
        if self.placement.rank == 0:
            directory.write_summary(self.trainer.output_dir, self.saving.summary())
            plot_losses(
                self.trainer.output_dir / METRICS_FILE,
                self.trainer.output_dir / "logs" / "loss.png",
            )

    def _start(self) -> None:
        resumed = self.trainer.checkpoint is not None
        previous = None
        if self.placement.rank == 0:
            previous = directory.start_output(self.cfg, self.trainer.output_dir, resumed)
        self.placement.wait()
        self.saving = Saving(self.trainer)
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
        progress, checkpoint = self.progress, self.trainer.checkpoint
        if checkpoint is not None:
            self.metrics.say(f"resumed from {checkpoint}")
            if progress.owed is not None:
                self.metrics.say(
                    f"first exports the student that was not exported: {progress.owed}"
                )
            if progress.epoch >= self.cfg.epochs:
                self.metrics.say(f"all {progress.epoch} epochs are done: nothing is left to train")
        for line in self.trainer.plan():
            self.metrics.say(line)
        batch = first_batch(self.data.loader, self.placement.device)
        trainer = self.trainer
        for warning in estimates.check_weights(
            trainer.student, trainer.teacher, batch, trainer.objective.ignore_index
        ):
            self.metrics.say(f"warning: {warning}")
        self._check_measure()

    def _check_measure(self) -> None:
        """Totals that were measured otherwise cannot tell which student is the best."""
        progress, loader = self.progress, self.data.val_loader
        if loader is None:
            return
        now = measure(self.cfg, loader, self.placement)
        if progress.best < math.inf and progress.best_by != now:
            self.metrics.say(
                "warning: dataset_val, its tokenizer, the teacher or the objective is not that of "
                f"the best validation so far ({progress.best:.4g}): best/ is chosen anew"
            )
            progress.best = math.inf
        progress.best_by = now

    def _train_epoch(self, epoch: int, stop: StopSignal) -> None:
        cfg, progress = self.cfg, self.progress
        self.trainer.student.train()
        skip_to(self.data.loader, epoch, progress.step_in_epoch * self.data.samples_per_step)
        if self.matcher is not None and progress.step_in_epoch == 0:
            pairs = pairs_of_epoch(cfg, self.trainer.student, self.trainer.teacher, epoch)
            self.trainer.objective.set_pairs(pairs)
        steps = range(progress.step_in_epoch, self.data.steps_per_epoch)
        groups = grouped(self.data.loader, cfg.gradient_accumulation_steps)
        start = time.perf_counter()
        for _, micro_batches in zip(steps, groups, strict=False):
            values = self._step(micro_batches)
            self._log(values, time.perf_counter() - start)
            self.trainer.profiler.step()
            self._validate()
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
        self.progress.newest |= values
        self.metrics.advance(values)
        if self.progress.global_step % self.cfg.log_every_n_steps == 0:
            self.metrics.log(values, self.progress.global_step)

    def _validate(self) -> None:
        every = self.cfg.run_val_every_n_steps or self.trainer.total_steps
        step = self.progress.global_step
        due = step % every == 0 or step == self.trainer.total_steps
        if self.trainer.validator is None or not due:
            return
        values = self.trainer.validator.run(self.trainer.student)
        named = {f"val/{k}": v for k, v in values.items()}
        self.progress.newest |= named
        self.metrics.log(named, step)
        if values["total"] < self.progress.best:
            self.progress.best = values["total"]
            if directory.keeps_best(self.trainer.checkpointer):
                self.saving.best()

    def _save_or_stop(self, stop: StopSignal) -> None:
        """Save after every n-th step; after a signal save and exit with 128 + its number."""
        every, step = self.cfg.save_every_n_steps, self.progress.global_step
        # An epoch's last step is saved with the epoch.
        ended = self.progress.step_in_epoch == self.data.steps_per_epoch
        received = stop.agreed()
        if received is None:
            if every and step % every == 0 and not ended:
                self.saving.state()
            return
        self.saving.state()
        saved = self.saving.checkpoints.newest
        self.metrics.say(
            f"{received.name} after step {step}: saved {saved}; go on with\n"
            f"tune run {self.placement.command} --config {self.trainer.output_dir / 'config.yaml'} "
            "resume_from_checkpoint=true"
        )
        raise SystemExit(128 + received)
