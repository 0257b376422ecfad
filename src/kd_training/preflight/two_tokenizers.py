"""What goes together with a teacher whose tokenizer is not the student's."""

from collections.abc import Sequence

from kd_config.dataset_nodes import packed_key
from kd_training.objective.parts import Parts
from kd_training.objective.term import Term


def check_two_tokenizers(parts: Parts, terms: Sequence[Term]) -> None:
    """Check that ``teacher_tokenizer`` fits the parts of the loss and the data.

    Raises:
        ValueError: If a part compares tokens or positions that only one tokenizer has.
    """
    config, weights = parts.config, parts.weights
    if config.teacher_tokenizer is None:
        return
    if parts.student.task != "causal_lm":
        raise ValueError(
            "config: teacher_tokenizer works for causal language models only, and "
            f"{parts.student.name} is none"
        )
    for term in terms:
        if term.needs.distribution and term.rows is not None and term.rows.shares_vocabulary:
            raise ValueError(
                f"config: {_named(term)} compares token by token, but teacher_tokenizer gives the "
                "teacher tokens of its own; use kd_losses.ULDLoss, and leave out all others"
            )
    fits = {
        "layer_mapping": ("none", weights["ir"] == 0),
        "token_scope.kd": ("labels", config.token_scope.kd == "labels"),
        "prompt_kd_loss": ("null", config.prompt_kd_loss is None),
    }
    for key, (needed, fit) in fits.items():
        if not fit:
            raise ValueError(
                f"config: {key} must be {needed} with teacher_tokenizer: only the targets of the "
                "two tokenizers have counterparts, where they end at the same character"
            )
    packed = packed_key(config)
    if packed is not None:
        raise ValueError(
            f"config: {packed}.packed must be false with teacher_tokenizer: the two tokenizers "
            "would pack other samples together"
        )


def _named(term: Term) -> str:
    """The key that asks for a term, and its divergence if it has one."""
    divergence = getattr(term.rows, "kd_loss", None)
    key = term.loss_key or f"log_{term.name}"
    return key if divergence is None else f"{key}: {type(divergence).__name__}"
