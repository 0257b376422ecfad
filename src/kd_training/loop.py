"""The training loop: the same from one CPU to many GPUs."""

import math
import time

from kd_data import Batch
from kd_data.batch import LOGITS
from kd_teachers import TeacherLost, live_models
from kd_training.checkpoint.run_state import RunState
from kd_training.far_teacher import fetched
from kd_training.objective.term import Term
from kd_training.output import directory
from kd_training.output.loss_plot import Panel, plot_losses
from kd_training.output.metrics import METRICS_FILE, Metrics, peak_memory_gib
from kd_training.placement.writing import WriteError
from kd_training.preflight.weights import check_weights
from kd_training.prepared import Run
from kd_training.saving import Saving
from kd_training.step import NonFiniteError, OptimizerStep
from kd_training.stop_signal import StopSignal


class Loop:
    """Epochs of steps, and what happens between them: logs, validation, checkpoints, stopping.

    Args:
        run: The run.
        step: Does one step.
        state: What a checkpoint keeps.
    """

    def __init__(self, run: Run, step: OptimizerStep, state: RunState) -> None:
        self.prepared, self.step, self.state = run, step, state
        self.placement, self.source, self.progress = run.placement, run.source, run.progress
        self.schedule, self.records = run.schedule, run.records

    def run(self) -> None:
        """Run all epochs, save a student after each, and draw the loss curves."""
        self._start()
        try:
            self._introduce()
            with self.records.profiler, StopSignal(self.placement) as stop:
                self.saving.owed()
                if self.schedule.validate_first and self.progress.global_step == 0:
                    self._held_out()
                for epoch in range(self.progress.epoch, self.schedule.epochs):
                    try:
                        self._train_epoch(epoch, stop)
                    except TeacherLost as err:
                        raise self._saved_without_teacher(err) from err
                    self.saving.epoch()
        except WriteError as err:
            raise OSError(f"{err}; {self.saving.checkpoints.way_on()}") from err
        finally:
            self.metrics.close()
        if self.placement.rank == 0:
            directory.write_summary(self.records.directory, self.saving.summary())
            panels = [Panel(t.name, t.title, self._unit(t)) for t in self.prepared.objective.terms]
            logs = self.records.directory / "logs"
            plot_losses(self.records.directory / METRICS_FILE, logs / "loss.png", panels)

    def _unit(self, term: Term) -> str:
        """A classifier's logits are of samples."""
        of_samples = self.prepared.student.facts.classes is not None and term.place == LOGITS
        return term.unit.replace("token", "sample") if of_samples else term.unit

    def _start(self) -> None:
        records = self.records
        previous = None
        if self.placement.rank == 0:
            resumed = self.prepared.checkpoint is not None
            previous = directory.start_output(records.directory, records.config, resumed)
        self.placement.wait()
        self.saving = Saving(self.prepared, self.state)
        self.metrics = Metrics(
            records.make_loggers,
            records.directory,
            self.prepared.total_steps,
            shown=["total", *(term.name for term in self.prepared.objective.terms)],
            first_step=self.progress.global_step,
            main=self.placement.rank == 0,
        )
        for warning in self.prepared.warnings:
            self.metrics.say(f"warning: {warning}")
        if previous is not None:
            self.metrics.say(f"the earlier run in {records.directory} is now in {previous}")

    def _introduce(self) -> None:
        run, progress = self.prepared, self.progress
        if run.checkpoint is not None:
            self.metrics.say(f"resumed from {run.checkpoint}")
            if progress.owed is not None:
                self.metrics.say(
                    f"first exports the student that was not exported: {progress.owed}"
                )
            if progress.epoch >= self.schedule.epochs:
                self.metrics.say(f"all {progress.epoch} epochs are done: nothing is left to train")
        for line in self.records.plan():
            self.metrics.say(line)
        batch = self.source.first_batch().to(self.placement.device)
        teachers = live_models(run.teacher)
        for warning in check_weights(run.student, teachers, batch, run.source.ignore_index):
            self.metrics.say(f"warning: {warning}")
        self._check_measure()

    def _check_measure(self) -> None:
        """Totals that were measured otherwise cannot tell which student is the best."""
        progress = self.progress
        if self.prepared.validator is None:
            return
        now = self.prepared.validator.measure()
        if progress.best < math.inf and progress.best_by != now:
            self.metrics.say(
                "warning: dataset_val, its tokenizer, the teacher or the objective is not that of "
                f"the best validation so far ({progress.best:.4g}): best/ is chosen anew"
            )
            progress.best = math.inf
        progress.best_by = now

    def _train_epoch(self, epoch: int, stop: StopSignal) -> None:
        progress = self.progress
        self.prepared.student.module.train()
        if progress.step_in_epoch == 0:
            self.prepared.objective.start_epoch(epoch)
        start = time.perf_counter()
        steps = self.source.steps(epoch, progress.step_in_epoch)
        for micro_batches in fetched(steps, self.prepared.teacher, self.placement):
            values = self._step(micro_batches) | self.source.news().values
            self._log(values, time.perf_counter() - start)
            self.records.profiler.step()
            self._validate()
            self._save_or_stop(stop)
            start = time.perf_counter()
        progress.epoch, progress.step_in_epoch = epoch + 1, 0

    def _saved_without_teacher(self, err: TeacherLost) -> OSError:
        """All ranks have come here between two steps."""
        self.saving.state()
        saved = self.saving.checkpoints.newest
        return OSError(
            f"{err}; saved {saved}: when the server is back, resume_from_checkpoint=true goes on"
        )

    def _step(self, micro_batches: list[Batch]) -> dict[str, float]:
        progress = self.progress
        try:
            values = self.step(micro_batches, progress.global_step + 1)
        except NonFiniteError as err:
            if progress.skipped >= self.schedule.skip_nonfinite:
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
        if "generation_seconds" in values:
            alone = max(seconds - values["generation_seconds"], 1e-9)
            values["trained_per_second"] = tokens / alone
        if self.records.peak_memory:
            values["peak_memory_gib"] = peak_memory_gib(self.placement.device)
        self.progress.seconds += seconds
        self.progress.tokens += tokens
        self.progress.newest |= values
        self.metrics.advance(values)
        if self.progress.global_step % self.schedule.log_every == 0:
            self.metrics.log(values, self.progress.global_step)
        news = self.source.news()
        self.metrics.texts(news.texts, self.progress.global_step)
        for warning in news.warnings:
            self.metrics.say(f"warning: {warning}")

    def _validate(self) -> None:
        step, last = self.progress.global_step, self.prepared.total_steps
        due = step % (self.schedule.validate_every or last) == 0 or step == last
        if self.prepared.validator is None or not due:
            return
        judged = self._held_out()
        if judged < self.progress.best:
            self.progress.best = judged
            self.saving.best()

    def _held_out(self) -> float:
        """Validate, record it, and return what the best student is judged by."""
        validator = self.prepared.validator
        assert validator is not None
        values = validator.run(self.prepared.student.module)
        named = {f"val/{k}": v for k, v in values.items()}
        self.progress.newest |= named
        self.metrics.log(named, self.progress.global_step)
        return values[validator.judged_by]

    def _save_or_stop(self, stop: StopSignal) -> None:
        """Save after every n-th step; after a signal save and exit with 128 + its number."""
        every, step = self.schedule.save_every, self.progress.global_step
        # An epoch's last step is saved with the epoch.
        ended = self.progress.step_in_epoch == self.source.steps_per_epoch
        received = stop.agreed()
        if received is None:
            if every and step % every == 0 and not ended:
                self.saving.state()
            return
        self.saving.state()
        saved = self.saving.checkpoints.newest
        self.metrics.say(
            f"{received.name} after step {step}: saved {saved}; go on with\n"
            f"tune run {self.placement.command} --config "
            f"{self.records.directory / 'config.yaml'} resume_from_checkpoint=true"
        )
        raise SystemExit(128 + received)
