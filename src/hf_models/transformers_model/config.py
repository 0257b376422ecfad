"""What a directory's config.json says of a model that transformers builds, and of its task."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from hf_models.raw_config import read_raw_config

AUTO_CLASSES = {
    "causal_lm": "AutoModelForCausalLM",
    "seq2seq_lm": "AutoModelForSeq2SeqLM",
    "sequence_classification": "AutoModelForSequenceClassification",
}


@cache
def _known() -> dict[str, Mapping[str, Any]]:
    """Task → model type → its classes; and of masked language models."""
    # Here, because it brings all of transformers' model code along.
    from transformers.models.auto import modeling_auto as auto

    return {
        "causal_lm": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "seq2seq_lm": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "sequence_classification": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        _MASKED: auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    }


_MASKED = "masked_lm"


def read_auto_config(
    checkpoint_dir: str | Path, task: str | None = None, num_labels: int | None = None
) -> tuple[PreTrainedConfig, str]:
    """The transformers config of a directory, and the task that its model is built for.

    No code from the directory is run.

    Raises:
        FileNotFoundError: If the directory or its config.json does not exist.
        ValueError: If config.json is malformed, asks for remote code, or does not fit the task.
    """
    raw = read_raw_config(checkpoint_dir)
    where = Path(checkpoint_dir, "config.json")
    try:
        config = AutoConfig.from_pretrained(
            checkpoint_dir, local_files_only=True, trust_remote_code=False
        )
    except Exception as err:  # transformers raises many kinds for one mistake
        raise ValueError(f"{where}: {_refusal(raw, err)}") from err
    if raw.get("quantization_config"):
        raise ValueError(
            f"{where}: quantized weights (quantization_config) are not supported; "
            "use the model in bf16 or fp32"
        )
    found = _task(config, task, where)
    if found == "sequence_classification":
        _set_classes(config, num_labels, where)
    elif num_labels is not None:
        raise ValueError(f"num_labels is {num_labels}, but {where} is for {found}; leave it out")
    return config, found


def _refusal(raw: dict[str, Any], err: Exception) -> str:
    if "auto_map" in raw:
        return (
            f"model_type {raw.get('model_type')!r} is remote code (auto_map), which is never run; "
            "use a model whose code transformers has"
        )
    return f"{type(err).__name__}: {' '.join(str(err).split())[:200]}"


def _task(config: PreTrainedConfig, task: str | None, where: Path) -> str:
    if task is None:
        task = _of_architecture(config, where)
    if task not in AUTO_CLASSES:
        raise ValueError(f"task is {task!r}; use {', '.join(AUTO_CLASSES)}")
    able = [one for one in AUTO_CLASSES if config.model_type in _known()[one]]
    if task not in able:
        have = f"it has {', '.join(able)}" if able else "nor for any other task here"
        raise ValueError(
            f"{where}: transformers has no {config.model_type} for task {task}; {have}"
        )
    # A masked language model sees the very tokens that it would have to predict.
    masked = config.model_type in _known()[_MASKED]
    if task == "causal_lm" and masked and not getattr(config, "is_decoder", False):
        raise ValueError(
            f"{where}: {config.model_type} reads in both directions, so it is no causal_lm; "
            "use task: sequence_classification"
        )
    return task


def any_task(checkpoint_dir: str | Path) -> str | None:
    """A task that a bare model could be for, as its blocks are the same for all; None to ask.

    Its architectures may name none, as those of a model that was only pretrained.
    """
    raw = read_raw_config(checkpoint_dir)
    if _named_task(raw.get("architectures") or []) is not None:
        return None
    kind, order = raw.get("model_type"), ("sequence_classification", "seq2seq_lm", "causal_lm")
    return next((task for task in order if kind in _known()[task]), None)


def _named_task(architectures: Sequence[str]) -> str | None:
    for task in AUTO_CLASSES:
        for known in _known()[task].values():
            if set(architectures) & set([known] if isinstance(known, str) else known):
                return task
    return None


def _of_architecture(config: PreTrainedConfig, where: Path) -> str:
    names = list(config.architectures or [])
    task = _named_task(names)
    if task is not None:
        return task
    shown = ", ".join(names) or "none"
    raise ValueError(
        f"{where}: architectures ({shown}) tell no task; set task: {', '.join(AUTO_CLASSES)}"
    )


def _set_classes(config: PreTrainedConfig, num_labels: int | None, where: Path) -> None:
    if num_labels is not None and num_labels != config.num_labels:
        config.num_labels = num_labels
    found: Any = config.num_labels
    if found < 2:
        raise ValueError(
            f"{where}: num_labels is {found}; a classifier has 2 classes at least "
            "(regression is not supported)"
        )
