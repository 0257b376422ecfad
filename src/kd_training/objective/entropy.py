"""How undecided the student is where it writes: observed, not trained for."""

from kd_losses import Entropy
from kd_training.objective.parts import Parts
from kd_training.objective.term import Term


class EntropyTerm(Term):
    """The mean entropy of the student's next token at labelled positions."""

    observed = True
    title = "entropy of the student"
    compared = "student alone, labels"
    loss = "entropy"

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.rows = Entropy()


def build(name: str, parts: Parts) -> list[Term]:
    """It, if the student writes text of its own."""
    settings = parts.config.on_policy
    return [EntropyTerm(name)] if settings is not None and settings.fraction > 0 else []
