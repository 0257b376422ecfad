"""Students as they leave a run: merged, with their adapter and their model card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchtune import training

from hf_models import HFCheckpointer
from hf_models.model import Model
from kd_config.card import CardFacts
from kd_training.objective.term import Term
from kd_training.output.directory import BEST
from kd_training.output.model_card import write_model_card
from kd_training.placement.one_device import Placement
from kd_training.placement.writing import WriteError, on_all_ranks


@dataclass(frozen=True)
class Export:
    """How a run's students are written.

    Attributes:
        checkpointer: Writes them.
        dtype: Of their weights.
        epochs: How many epochs the run has.
        adapter_only: Whether only the adapter is written.
        card: What their cards say of the config.
    """

    checkpointer: Any
    dtype: torch.dtype
    epochs: int
    adapter_only: bool
    card: CardFacts

    @property
    def keeps_best(self) -> bool:
        """Whether the checkpointer can keep a best student beside the epochs' ones."""
        return isinstance(self.checkpointer, HFCheckpointer)

    def write(
        self,
        student: Model,
        placement: Placement,
        epoch: int,
        best: bool,
        numbers: Mapping[str, float],
        terms: Sequence[Term],
    ) -> None:
        """Write the merged student, its adapter and its card, by rank 0.

        Every rank returns when that is done.

        Raises:
            WriteError: On every rank, if it cannot be written; an earlier one at its place stays.
        """
        folder = save_student(self, student, placement, epoch, best)

        def write_card() -> None:
            if folder is not None and not self.adapter_only:
                write_model_card(folder, self.card, numbers, terms)

        on_all_ranks(placement, write_card)


def save_student(
    export: Export, student: Model, placement: Placement, epoch: int, best: bool
) -> Path | None:
    """Write the merged student and its adapter through the run's checkpointer.

    Returns:
        The directory, where it is one of ours and this rank has written it.

    Raises:
        WriteError: On every rank, if it cannot be written.
    """
    checkpointer = export.checkpointer
    state = placement.full_state_dict(student.module)
    # Only our own checkpointer can write a folder that is not an epoch's.
    where = {"dirname": BEST} if best else {}

    def write() -> None:
        merged = student.merged(state)
        weights = {name: _in(export.dtype, tensor) for name, tensor in merged.weights.items()}
        checkpoint: dict[str, Any] = {training.MODEL_KEY: weights}
        if merged.adapter is not None:
            checkpoint[training.ADAPTER_KEY] = merged.adapter
            checkpoint[training.ADAPTER_CONFIG] = merged.adapter_config
        checkpointer.save_checkpoint(
            checkpoint,
            epoch=epoch,
            intermediate_checkpoint=epoch + 1 != export.epochs,
            adapter_only=export.adapter_only,
            **where,
        )

    writes = placement.rank == 0
    try:
        on_all_ranks(placement, write if writes else lambda: None)
    except WriteError as err:
        which = "the best student" if best else f"the student of epoch {epoch}"
        raise WriteError(f"{which} could not be written: {err}") from err
    if not writes or not export.keeps_best:
        return None
    assert checkpointer.output_dir is not None  # or it would not have written
    return checkpointer.output_dir / (BEST if best else f"epoch_{epoch}")


def _in(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    """A weight in that dtype; what is no floating-point number stays."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
