"""Samples to a batch of a classifier.

Shapes: B samples, S the longest text's length.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kd_data.batch import DECODER, ENCODER, LOGITS, Batch
from kd_data.tasks.keys import key_of
from kd_data.tasks.texts import padded


def collate_classification(
    samples: Sequence[Mapping[str, Any]],
    pad_id: int,
    classes: int,
    ignore_index: int = -100,
    max_positions: int | None = None,
) -> Batch:
    """A classifier's batch: texts padded on the right; a sample's position is the only one.

    Args:
        samples: ``tokens``, ``labels`` with one class, and ``token_type_ids`` if the tokenizer has
            them. A true ``blank`` marks a sample that only fills up a batch and counts nowhere.
        pad_id: Token to pad with.
        classes: Number of classes.
        ignore_index: Label of a sample that counts nowhere.
        max_positions: The longest text that the model takes; None without a limit.

    Returns:
        ``labels`` [B, 1]; in the stacks every real token counts, whatever the scope.

    Raises:
        ValueError: If a sample is too long, has not one label, or none of the classes.
    """
    for sample in samples:
        _check_label(sample["labels"], classes)
    text = padded(samples, "tokens", pad_id, max_positions)
    inputs = {"input_ids": text.ids, "attention_mask": text.attention_mask}
    if "token_type_ids" in samples[0]:
        inputs["token_type_ids"] = padded(samples, "token_type_ids", 0, None).ids
    blank = torch.tensor([[bool(sample.get("blank"))] for sample in samples])
    labels = torch.tensor([[int(sample["labels"][0])] for sample in samples])
    own = {LOGITS: ~blank, ENCODER: text.valid, DECODER: text.valid}
    nothing = {place: torch.zeros_like(mask) for place, mask in own.items()}
    number = torch.where(blank, -1, (~blank).long().cumsum(0) - 1)
    keys = [_key(sample) for sample in samples if not sample.get("blank")]
    return Batch(
        inputs,
        labels.masked_fill(blank, ignore_index),
        {"labels": own, "all": own, "prompt": nothing},
        {LOGITS: number, ENCODER: text.documents, DECODER: text.documents},
        torch.tensor(keys, dtype=torch.long).view(-1, 2),
    )


def _check_label(labels: Sequence[int], classes: int) -> None:
    if len(labels) != 1:
        raise ValueError(
            f"a sample has {len(labels)} labels, but a classifier's has one; use "
            "kd_data.classification_dataset"
        )
    if not 0 <= int(labels[0]) < classes:
        raise ValueError(
            f"a label is {int(labels[0])}, but the model has {classes} classes, from 0 to "
            f"{classes - 1}; set model.num_labels, or mend the data"
        )


def _key(sample: Mapping[str, Any]) -> list[int]:
    """Of what is read; -1 is no token."""
    return key_of(torch.tensor([*sample["tokens"], -1, *sample.get("token_type_ids", [])]))
