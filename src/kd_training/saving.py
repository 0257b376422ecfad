"""What a run saves on its way: its state, then the students that this state owes."""

from kd_training.checkpoint.files import Checkpoints, note_export
from kd_training.checkpoint.run_state import RunState
from kd_training.output.directory import BEST, EPOCH
from kd_training.output.metrics import peak_memory_gib
from kd_training.placement.writing import WriteError
from kd_training.prepared import Run


class Saving:
    """Saves states and exports students such that a run which ends at any moment loses neither.

    A student that a checkpoint owes is exported when the run goes on, at the latest. Until then
    whatever lies at its place may be of an earlier attempt, and is replaced.

    Args:
        run: The run, in a directory that it has taken over.
        state: What its checkpoints keep.
    """

    def __init__(self, run: Run, state: RunState) -> None:
        self.prepared, self.run_state = run, state
        self.progress, self.placement = run.progress, run.placement
        self.checkpoints = Checkpoints(
            run.records.directory, run.schedule.keep_last_n, run.checkpoint
        )

    def state(self) -> None:
        """Write a checkpoint.

        Raises:
            WriteError: If it cannot be written.
        """
        tensors, facts = self.run_state.tensors_and_facts()
        self.checkpoints.save(self.progress.global_step, tensors, facts, self.placement)

    def epoch(self) -> None:
        """Write the checkpoint and the student that an epoch ends with.

        Raises:
            WriteError: If one of them cannot be written.
        """
        self.progress.owed = EPOCH
        try:
            self.state()
        except WriteError:
            self._export(EPOCH)  # it may find room where the state did not
            raise
        self.owed()

    def best(self) -> None:
        """Export the best student so far, if it can be kept; if that fails, a checkpoint owes it.

        Raises:
            WriteError: If it cannot be written.
        """
        if not self.prepared.records.export.keeps_best:
            return
        try:
            self._export(BEST)
        except WriteError:
            self.progress.owed = BEST
            self.state()
            raise

    def owed(self) -> None:
        """Export the student that the newest checkpoint owes, if any, and note it there.

        Raises:
            WriteError: If it cannot be written.
        """
        owed, checkpoint = self.progress.owed, self.checkpoints.newest
        if owed is None:
            return
        self._export(owed)
        if self.placement.rank == 0 and checkpoint is not None:
            note_export(checkpoint)
        self.progress.owed = None

    def _export(self, which: str) -> None:
        best = which == BEST
        self.prepared.records.export.write(
            self.prepared.student,
            self.placement,
            self.progress.epoch - (not best),
            best,
            self.progress.newest | self.summary(),
            self.prepared.objective.terms,
        )

    def summary(self) -> dict[str, float]:
        """The run's totals so far."""
        progress = self.progress
        return {
            "steps": progress.global_step,
            "label_tokens": progress.tokens,
            "training_seconds": progress.seconds,
            "tokens_per_second": progress.tokens / max(progress.seconds, 1e-9),
            "peak_memory_gib": peak_memory_gib(self.placement.device),
        }
