"""A teacher that is asked anew each time."""

from typing import Any

import torch

from hf_models.model import Model, ModelFacts
from kd_data import Batch
from kd_losses import Projected
from kd_teachers.reading import read
from kd_teachers.signal import FULL, TAPS, TOP_K, Needs, Signal
from kd_teachers.store.store import Store
from kd_teachers.teacher import Member, Places


class Live:
    """A frozen model in memory.

    Args:
        model: It, in eval mode, on the meta device until it is loaded.
        checkpointer: Reads its weights.
        quantization: What its layers become; None for nothing else.
        key: The config's key of it.
        directory: Where its files are; None where nobody knows.
    """

    gives = frozenset({FULL, TOP_K, TAPS})
    remote = False

    def __init__(
        self,
        model: Model,
        checkpointer: Any = None,
        quantization: Any = None,
        key: str = "teacher_model",
        directory: str | None = None,
    ) -> None:
        self.model, self._checkpointer, self._quantization = model, checkpointer, quantization
        self._key, self._directory = key, directory

    @property
    def facts(self) -> ModelFacts:
        """The model's."""
        return self.model.facts

    def lacks(self, needs: Needs) -> str | None:
        """Nothing."""

    def members(self) -> dict[str, Member]:
        """The model."""
        return {self._key: Member(self.facts, self.model, self._directory)}

    def stores(self) -> dict[str, Store]:
        """None."""
        return {}

    def describe(self) -> list[str]:
        """Nothing: the plan has its size."""
        return []

    def load(self, placement: Places) -> None:
        """Read its weights."""
        placement.place_teacher(self.model, self._checkpointer, self._quantization)

    def read_ahead(self, batch: Batch) -> Batch:
        """The batch as it is."""
        return batch

    @torch.no_grad()
    def signal(self, batch: Batch, needs: Needs) -> Signal:
        """One forward, up to the deepest tap where nobody needs the logits."""
        return answer(self.model, batch, needs)


def answer(model: Model, batch: Batch, needs: Needs) -> Signal:
    """What a model in eval mode says about a micro-batch."""
    view = read(model, batch.teacher_inputs(), needs)
    taps = {tap: batch.at_student_positions(output) for tap, output in view.taps.items()}
    if not needs.distribution:
        return Signal(None, taps)
    hidden = batch.at_student_positions(view.hidden)
    return Signal(Projected(hidden.flatten(0, 1), model.head()), taps)
