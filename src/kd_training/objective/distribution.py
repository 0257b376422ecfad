"""The teacher's distribution: a divergence where ``token_scope.kd`` says, another on the prompt."""

from kd_losses import Divergence, KDLoss
from kd_teachers import Needs
from kd_training.objective.parts import Parts
from kd_training.objective.term import Term


class DistributionTerm(Term):
    """A divergence from the teacher."""

    def __init__(self, name: str, divergence: KDLoss, scope: str, title: str) -> None:
        super().__init__(scope, name)
        self.title = title
        self.rows = Divergence(divergence)
        self.needs = Needs(distribution=True, reads=frozenset({self.rows.reads}))


def build(name: str, parts: Parts) -> list[Term]:
    """It, if it has a weight.

    Raises:
        ValueError: If ``kd_loss`` does not fit.
    """
    divergence = parts.divergence("kd_loss")
    if parts.weights[name] == 0:
        return []
    if divergence is None:
        raise ValueError("config: kd_loss must be set (or give kd the weight 0)")
    config = parts.config
    scope = "matched" if config.teacher_tokenizer is not None else config.token_scope.kd
    term = DistributionTerm(name, divergence, scope, "divergence from the teacher")
    term.compared = f"teacher's distribution, {config.token_scope.kd}"
    term.loss_key = "kd_loss"
    return [term]


def build_prompt(name: str, parts: Parts) -> list[Term]:
    """The one for positions without a label, weighted as ``kd`` is.

    Raises:
        ValueError: If ``prompt_kd_loss`` does not fit.
    """
    divergence = parts.divergence("prompt_kd_loss")
    if divergence is None or parts.weights["kd"] == 0:
        return []
    term = DistributionTerm(name, divergence, "prompt", "divergence on the prompt")
    term.weighs_as = "kd"
    term.compared = "teacher's distribution, prompt"
    term.loss_key = "prompt_kd_loss"
    return [term]
