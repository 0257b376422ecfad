"""Samples to a batch of an encoder-decoder.

Shapes: B samples, S the longest source's length, T the longest target's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kd_data.batch import DECODER, ENCODER, LOGITS, Batch
from kd_data.tasks.keys import key_of
from kd_data.tasks.texts import padded


def collate_seq2seq(
    samples: Sequence[Mapping[str, Any]],
    pad_id: int,
    decoder_start_id: int,
    ignore_index: int = -100,
    max_positions: int | None = None,
) -> Batch:
    """An encoder-decoder's batch: sources and targets padded on the right.

    Args:
        samples: ``tokens``, the source, and ``labels``, the target with its special tokens. A true
            ``blank`` marks a sample that only fills up a batch and counts nowhere.
        pad_id: Token to pad with.
        decoder_start_id: What the decoder reads before the first target.
        ignore_index: Label of positions without a target.
        max_positions: The longest source or target that the model takes; None without a limit.

    Returns:
        A decoder position reads the target before its own. In the encoder every real token counts,
        whatever the scope, for it has no labels.

    Raises:
        ValueError: If a sample is too long, or one of a causal model.
    """
    for sample in samples:
        if len(sample["labels"]) == 0 or ignore_index in map(int, sample["labels"]):
            raise ValueError(
                "a target is empty or partly masked, as a causal model's are; use "
                "kd_data.seq2seq_dataset, or kd_data.lm_eval_task with seq2seq: true"
            )
    source = padded(samples, "tokens", pad_id, max_positions)
    target = padded(samples, "labels", pad_id, max_positions)
    labels = target.ids.masked_fill(~target.valid, ignore_index)
    read = target.ids.roll(1, dims=1)
    read[:, 0] = decoder_start_id
    counted = {LOGITS: target.valid, DECODER: target.valid, ENCODER: source.valid}
    nothing = {place: torch.zeros_like(mask) for place, mask in counted.items()}
    keys = [_key(sample, decoder_start_id) for sample in samples if not sample.get("blank")]
    return Batch(
        {
            "input_ids": source.ids,
            "attention_mask": source.attention_mask,
            "decoder_input_ids": read,
        },
        labels,
        {"labels": counted, "all": counted, "prompt": nothing},
        {LOGITS: target.documents, DECODER: target.documents, ENCODER: source.documents},
        torch.tensor(keys, dtype=torch.long).view(-1, 2),
    )


def _key(sample: Mapping[str, Any], decoder_start_id: int) -> list[int]:
    """Of what both stacks read; -1 is no token."""
    read = [decoder_start_id, *sample["labels"][:-1]]
    return key_of(torch.tensor([*sample["tokens"], -1, *read]))
