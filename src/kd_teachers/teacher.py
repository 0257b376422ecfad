"""What a loss may ask of a teacher, and what a teacher answers."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

from torch import Tensor

from kd_data import Batch
from kd_losses import Rows
from layer_mapping.taps import Tap

FULL, TAPS = "full", "taps"  # kinds of answers: the whole distribution, the outputs of layers


@dataclass(frozen=True)
class Needs:
    """What is needed of a teacher's forward.

    Attributes:
        distribution: Its logits, at every position of the student's.
        taps: (stack, layer) of the outputs.
    """

    distribution: bool = False
    taps: frozenset[Tap] = frozenset()

    def __or__(self, other: Self) -> "Needs":
        return Needs(self.distribution or other.distribution, self.taps | other.taps)

    def __bool__(self) -> bool:
        return self.distribution or bool(self.taps)

    @property
    def kinds(self) -> set[str]:
        """Their kinds: ``full``, ``taps``."""
        return {kind for kind, needed in ((FULL, self.distribution), (TAPS, self.taps)) if needed}


class Signal(NamedTuple):
    """A teacher's answer about a micro-batch.

    Attributes:
        rows: Its logits at the student's positions, N = B·S rows; None where nobody needs them.
        taps: (stack, layer) → that layer's output [B, S, D].
    """

    rows: Rows | None
    taps: dict[Tap, Tensor]


class Teacher(Protocol):
    """Who is asked about every micro-batch.

    Attributes:
        gives: The kinds of answers that it has.
    """

    gives: frozenset[str]

    def signal(self, batch: Batch, needs: Needs) -> Signal:
        """What it says about a micro-batch, without a gradient."""


def check_needs(teacher: Teacher, name: str, needs: Needs) -> None:
    """Refuse a term of the loss that the teacher cannot answer, before anything is loaded.

    Raises:
        ValueError: If it cannot; the message names the term and what it needs.
    """
    missing = sorted(needs.kinds - teacher.gives)
    if missing:
        words = {FULL: "the teacher's whole distribution", TAPS: "the outputs of its layers"}
        raise ValueError(
            f"config: {name} needs {words[missing[0]]}, which {type(teacher).__name__} does not "
            f"give; give {name} the weight 0, or take another teacher"
        )
