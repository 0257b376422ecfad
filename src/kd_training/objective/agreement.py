"""How often student and teacher would say the same next token: observed, not trained for."""

from kd_losses import TopOneAgreement
from kd_teachers import Needs
from kd_training.objective.parts import Parts
from kd_training.objective.term import Term


class AgreementTerm(Term):
    """The share of labelled positions where both have the same most probable token."""

    observed = True
    needs = Needs(distribution=True, reads=frozenset({TopOneAgreement.reads}))
    title = "agreement with the teacher"
    unit = "share of tokens"
    compared = "teacher's most probable token, labels"
    loss = "same token"

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.rows = TopOneAgreement()


def build(name: str, parts: Parts) -> list[Term]:
    """It, if ``log_agreement`` asks for it."""
    return [AgreementTerm(name)] if parts.config.log_agreement else []
