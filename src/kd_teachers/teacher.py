"""Who teaches: the interface of those that are asked."""

from typing import Any, NamedTuple, Protocol

from hf_models.model import Model, ModelFacts
from kd_data import Batch
from kd_teachers.signal import FULL, TAPS, TOP_K, Needs, Signal
from kd_teachers.store.store import Store


class Member(NamedTuple):
    """One model whose answers are used.

    Attributes:
        facts: Its sizes.
        model: It, where it is in memory for this alone.
        directory: Where its files are, as far as the config says.
    """

    facts: ModelFacts
    model: Model | None = None
    directory: str | None = None


class Places(Protocol):
    """Where a teacher is put: see a run's placement."""

    device: Any

    def place_teacher(self, model: Model, checkpointer: Any, quantization: Any = None) -> None:
        """Give a frozen model on the meta device its weights."""


class Teacher(Protocol):
    """Who is asked about every micro-batch.

    Attributes:
        gives: The kinds of answers that it has.
        remote: Whether they come from elsewhere, and may fail to come.
    """

    gives: frozenset[str]
    remote: bool

    @property
    def facts(self) -> ModelFacts:
        """Sizes of the model that answers, or has answered."""

    def lacks(self, needs: Needs) -> str | None:
        """What it has not of ``needs``, of kinds that it gives, and what to do; None if it has."""

    def members(self) -> dict[str, Member]:
        """Models besides the student, by their key of the config."""

    def stores(self) -> dict[str, Store]:
        """Kept answers, by their key of the config."""

    def describe(self) -> list[str]:
        """Lines for the plan of the run."""

    def load(self, placement: Places) -> None:
        """Put it where the run lives."""

    def read_ahead(self, batch: Batch) -> Batch:
        """The batch, on the host, with what can be fetched of the answers before they are asked."""

    def signal(self, batch: Batch, needs: Needs) -> Signal:
        """What it says about a micro-batch, without a gradient."""


_WORDS = {
    FULL: "the teacher's whole distribution",
    TOP_K: "the teacher's distribution",
    TAPS: "the outputs of its layers",
}


def check_needs(teacher: Teacher, name: str, needs: Needs) -> None:
    """Refuse a term of the loss that the teacher cannot answer, before anything is loaded.

    Raises:
        ValueError: If it cannot; the message names the term and what it needs.
    """
    missing = sorted(needs.kinds - teacher.gives)
    lacking = teacher.lacks(needs)
    if missing:
        lacking = (
            f"{_WORDS[missing[0]]}, which {type(teacher).__name__} does not give; give {name} the "
            "weight 0, or take another teacher"
        )
    if lacking is not None:
        raise ValueError(f"config: {name} needs {lacking}")


def live_models(teacher: Teacher | None) -> dict[str, Model]:
    """The models that are in memory to teach, by their key of the config."""
    members = {} if teacher is None else teacher.members()
    return {key: one.model for key, one in members.items() if one.model is not None}
