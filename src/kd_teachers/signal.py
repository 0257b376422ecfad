"""What a loss may ask of a teacher, and the answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

from torch import Tensor

from kd_losses import Reads, Rows
from layer_mapping.taps import Tap

# Kinds of answers: the whole distribution; its most probable tokens and the mass of all others; the
# outputs of layers.
FULL, TOP_K, TAPS = "full", "top_k", "taps"


@dataclass(frozen=True)
class Needs:
    """What is needed of a teacher's forward.

    Attributes:
        distribution: Its logits, at every position of the student's.
        taps: (stack, layer) of the outputs.
        reads: What of the distribution is read.
    """

    distribution: bool = False
    taps: frozenset[Tap] = frozenset()
    reads: frozenset[Reads] = frozenset()

    def __or__(self, other: Self) -> "Needs":
        return Needs(
            self.distribution or other.distribution,
            self.taps | other.taps,
            self.reads | other.reads,
        )

    def __bool__(self) -> bool:
        return self.distribution or bool(self.taps)

    @property
    def kinds(self) -> set[str]:
        """Their kinds: ``full`` or ``top_k``, ``taps``."""
        distribution = FULL if any(one.whole for one in self.reads) else TOP_K
        asked = ((distribution, self.distribution), (TAPS, self.taps))
        return {kind for kind, needed in asked if needed}


class Signal(NamedTuple):
    """A teacher's answer about a micro-batch.

    Attributes:
        rows: Its logits at the student's positions, N = B·S rows; None where nobody needs them.
        taps: (stack, layer) → that layer's output [B, S, D].
        named: Of several teachers, each one's own rows and the rows [N] that it teaches.
    """

    rows: Rows | None
    taps: dict[Tap, Tensor]
    named: Mapping[str, tuple[Rows, Tensor]] = {}
