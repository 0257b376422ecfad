"""The labels' part."""

from kd_losses import CrossEntropy
from kd_training.objective.parts import Parts
from kd_training.objective.term import Term


class LabelTerm(Term):
    """Cross-entropy with the labels, which must be known to be right."""

    on_written = False
    title = "cross-entropy with the labels"
    compared = "labels"
    loss = "cross-entropy"

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.rows = CrossEntropy()


def build(name: str, parts: Parts) -> list[Term]:
    """It, if it has a weight."""
    return [LabelTerm(name)] if parts.weights[name] > 0 else []
