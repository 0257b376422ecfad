"""The student's own base as its teacher: nothing of it is in memory twice."""

import torch

from hf_models.model import Model, ModelFacts
from kd_data import Batch
from kd_teachers.live import answer
from kd_teachers.signal import FULL, TAPS, TOP_K, Needs, Signal
from kd_teachers.store.store import Store
from kd_teachers.teacher import Member, Places


class OwnBase:
    """A student that answers without its adapter and without dropout.

    Args:
        student: The student, whose adapter alone is trained.
    """

    gives = frozenset({FULL, TOP_K, TAPS})
    remote = False

    def __init__(self, student: Model) -> None:
        self._student = student

    @property
    def facts(self) -> ModelFacts:
        """The student's."""
        return self._student.facts

    def lacks(self, needs: Needs) -> str | None:
        """Nothing."""

    def members(self) -> dict[str, Member]:
        """None of its own."""
        return {}

    def stores(self) -> dict[str, Store]:
        """None."""
        return {}

    def describe(self) -> list[str]:
        """Who teaches."""
        return ["teacher: the student's own base, its adapter switched off"]

    def load(self, placement: Places) -> None:
        """The student is loaded as it is."""

    def read_ahead(self, batch: Batch) -> Batch:
        """The batch as it is."""
        return batch

    @torch.no_grad()
    def signal(self, batch: Batch, needs: Needs) -> Signal:
        """One forward of the student, its adapter switched off."""
        module = self._student.module
        was_training = module.training
        module.eval()
        try:
            with self._student.without_adapter():
                return answer(self._student, batch, needs)
        finally:
            module.train(was_training)
