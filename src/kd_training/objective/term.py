"""One part of the objective: what every part says of itself, and the base of those on logits.

Shapes: R rows of a tile, V vocabulary.
"""

from typing import Any, NamedTuple

from torch import Tensor, nn

from hf_models.model import View
from kd_data import Batch
from kd_data.batch import LOGITS
from kd_losses import RowTerm
from kd_teachers import Needs, Signal
from layer_mapping.taps import Tap


class Sum(NamedTuple):
    """A term's plain sum over the positions in its scope.

    Attributes:
        value: A scalar; carries the gradient.
        details: Sums that are logged as ``<term>/<name>``, without a gradient.
    """

    value: Tensor
    details: dict[str, Tensor]


class Term:
    """A part of the objective; its name is the key of its weight, of the log, the plot, the card.

    A term on logits has ``rows``; all of them share one projection and one pass. Any other
    overrides `sum`.

    Args:
        scope: The positions that it counts, a scope of the batch: ``labels`` (with a target),
            ``all`` (no padding), ``prompt`` (neither).
        name: Its key; a term of one's own is named by the config.

    Attributes:
        place: Where its scope is looked up: ``logits`` or a stack of layers.
        observed: Whether it is only logged.
        on_written: Whether it counts on text that the student has written itself.
        weighs_as: Key of its weight; None for what is only observed.
        share: Its part of that weight, where several terms have it together.
        needs: What it asks of the teacher.
        taps: The student's layers that it reads.
        rows: Its arithmetic on logits; None where it has none.
        module: What it trains of its own; None for nothing.
        title, unit: Words for the plot.
        compared, loss: Words for the card: what is compared, and how.
        loss_key: The config's key that names the loss, instead of ``loss``.
    """

    place = LOGITS
    observed = False
    on_written = True
    share = 1.0
    needs = Needs()
    taps: frozenset[Tap] = frozenset()
    rows: RowTerm | None = None
    module: nn.Module | None = None
    title = ""
    unit = "nats per token"
    compared = ""
    loss = ""
    loss_key = ""

    def __init__(self, scope: str = "labels", name: str = "") -> None:
        self.name, self.scope = name, scope
        self.weighs_as = None if self.observed else name

    def sum(self, student: View, teacher: Signal, batch: Batch) -> Sum:
        """The sum over the micro-batch, of a term that is none on logits."""
        raise NotImplementedError

    def start_epoch(self, epoch: int) -> None:
        """Take in that an epoch begins."""

    def facts(self) -> Any:
        """What a resumed run must know of it, as JSON."""
        return None

    def load_facts(self, facts: Any) -> None:
        """Go on from `facts`."""

    def describe(self) -> str | None:
        """A line for the plan of the run; None for nothing to say."""
        return None


class LogitsTerm(Term, RowTerm):
    """A term of one's own on logits: a subclass defines `per_token`, and autograd the gradient.

    ::

        class Confidence(LogitsTerm):
            def per_token(self, student_logits, teacher_logits, labels):
                log_q = student_logits.log_softmax(-1)       # [R, V], fp32
                return (log_q.exp() * log_q).sum(-1)         # [R]

    Attributes:
        needs_teacher: Whether it reads the teacher's logits [R, V]; without they may be None.
    """

    def __init__(self, scope: str = "labels") -> None:
        super().__init__(scope)
        self.rows = self
        reads = frozenset({self.reads} if self.needs_teacher else ())
        self.needs = Needs(distribution=self.needs_teacher, reads=reads)
