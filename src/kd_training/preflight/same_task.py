"""Student and teacher must predict the same kind of thing, from the same rows."""

from collections.abc import Mapping

from hf_models.model import ModelFacts
from kd_config.dataset_nodes import is_packed
from kd_config.schema import RunConfig


def check_same_task(
    config: RunConfig, student: ModelFacts, teachers: Mapping[str, ModelFacts]
) -> None:
    """Check what both models are for, and whether they can read the rows that the data come in.

    Raises:
        ValueError: If they differ in task, classes or special tokens, or one cannot separate the
            documents of a packed row.
    """
    models = {"model": student, **teachers}
    packed = next((k for k in ("dataset", "dataset_val") if is_packed(getattr(config, k))), None)
    for key, facts in models.items():
        if packed and not (facts.separates_documents and facts.task == "causal_lm"):
            raise ValueError(
                f"config: {packed}.packed: {key} ({facts.name}) cannot keep several documents of "
                "one row apart; leave packed out, and set group_by_length: true instead"
            )
    if student.task == "seq2seq_lm" and student.decoder_start_id is None:
        raise ValueError(
            "config: model: its config.json has no decoder_start_token_id, which the targets start "
            "from; set it there"
        )
    for key, teacher in teachers.items():
        _check_pair(student, key, teacher)


def _check_pair(ours: ModelFacts, key: str, theirs: ModelFacts) -> None:
    if ours.task != theirs.task:
        raise ValueError(
            f"config: model is for {ours.task}, but {key} for {theirs.task}; set task, or "
            "take another teacher"
        )
    if ours.classes != theirs.classes:
        raise ValueError(
            f"config: model has {ours.classes} classes, but {key} {theirs.classes}; set "
            "model.num_labels"
        )
    if ours.task == "causal_lm":
        return
    for name, own, other in (
        ("pad_token_id", ours.pad_id, theirs.pad_id),
        ("decoder_start_token_id", ours.decoder_start_id, theirs.decoder_start_id),
    ):
        if own != other:
            raise ValueError(
                f"config: {name} is {own} in the config.json of model, but {other} in that of "
                f"{key}, which reads the same rows; use models of one tokenizer"
            )
