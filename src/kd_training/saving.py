"""What a run saves on its way: its state, then the students that this state owes."""

from typing import TYPE_CHECKING

from kd_training.checkpoint.files import Checkpoints, note_export
from kd_training.output import directory
from kd_training.output.directory import BEST, EPOCH
from kd_training.output.metrics import peak_memory_gib
from kd_training.output.model_card import write_model_card
from kd_training.placement.writing import WriteError, on_all_ranks

if TYPE_CHECKING:
    from kd_training.trainer import Trainer


class Saving:
    """Saves states and exports students such that a run which ends at any moment loses neither.

    A student that a checkpoint owes is exported when the run goes on, at the latest. Until then
    whatever lies at its place may be of an earlier attempt, and is replaced.

    Args:
        trainer: The run, loaded, in a directory that it has taken over.
    """

    def __init__(self, trainer: "Trainer") -> None:
        self.trainer, self.cfg = trainer, trainer.cfg
        self.progress, self.placement = trainer.progress, trainer.placement
        self.matcher = trainer.objective.matcher
        self.checkpoints = Checkpoints(
            trainer.output_dir, trainer.cfg.keep_last_n, trainer.checkpoint
        )

    def state(self) -> None:
        """Write a checkpoint.

        Raises:
            WriteError: If it cannot be written.
        """
        trainer = self.trainer
        tensors, facts = trainer.state.tensors_and_facts()
        facts["pairs"] = self.matcher and self.matcher.pairs
        facts["data"], facts["seed"] = trainer.data.facts(), trainer.seed
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
        """Export the best student so far; where that fails, a checkpoint owes it.

        Raises:
            WriteError: If it cannot be written.
        """
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
        epoch = self.progress.epoch - (not best)
        folder = directory.save_student(
            self.trainer.student,
            self.trainer.checkpointer,
            self.placement,
            epoch,
            self.trainer.dtype,
            last=epoch + 1 == self.cfg.epochs,
            adapter_only=self.cfg.save_adapter_weights_only,
            best=best,
        )

        def write_card() -> None:
            if folder is not None and not self.cfg.save_adapter_weights_only:
                pairs = None if self.matcher is None else self.matcher.pairs
                write_model_card(folder, self.cfg, self.progress.newest | self.summary(), pairs)

        on_all_ranks(self.placement, write_card)

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
