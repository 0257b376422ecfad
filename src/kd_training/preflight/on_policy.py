"""What goes together with text that the student writes itself."""

from kd_config.schema import RunConfig
from kd_training.objective.objective import Objective

_CACHES = (
    "on_policy: {key} holds what a teacher has said of text that was there before, and nothing of "
    "what the student is going to write; name the teacher itself instead of its cache{less}"
)


def check_on_policy(config: RunConfig, objective: Objective) -> None:
    """Check that ``on_policy`` fits the models, the teacher and the parts of the loss.

    Raises:
        ValueError: If the student writes nothing, or nobody can say anything of what it writes.
    """
    settings = config.on_policy
    assert settings is not None
    facts, teacher = objective.student.facts, objective.teacher
    if facts.classes is not None:
        raise ValueError(f"config: on_policy: {facts.name} is a classifier, which writes no text")
    if config.teacher_tokenizer is not None:
        raise ValueError(
            "config: on_policy and teacher_tokenizer: leave out one of them; the student's own "
            "text is compared token by token, with a teacher of the same tokens"
        )
    writes = settings.fraction > 0
    asked = any(term.needs and term.on_written and not term.observed for term in objective.terms)
    if writes and not asked:
        raise ValueError(
            "config: on_policy.fraction is above 0, but no part of the loss asks the teacher about "
            "the student's text: give kd or ir a weight, or set the fraction to 0"
        )
    measures = settings.val_prompts > 0 and config.dataset_val is not None
    kept = {} if teacher is None else teacher.stores()
    if kept and (writes or measures):
        less = "" if writes else ", or set on_policy.val_prompts to 0"
        raise ValueError("config: " + _CACHES.format(key=next(iter(kept)), less=less))
    if measures and teacher is None:
        raise ValueError(
            "config: on_policy.val_prompts compares with a teacher, and the run has none: set it "
            "to 0, or leave out on_policy"
        )
