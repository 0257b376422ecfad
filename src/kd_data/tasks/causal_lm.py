"""Samples to a batch of a causal language model.

Shapes: B samples, S the longest one's length.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kd_data.batch import DECODER, LOGITS, Batch, TeacherInputs
from kd_data.tasks.keys import key_of
from kd_data.two_tokenizers import UNPAIRED


def collate(
    samples: Sequence[Mapping[str, Any]],
    pad_id: int,
    ignore_index: int = -100,
    teacher_pad_id: int = 0,
) -> Batch:
    """A causal language model's batch: samples padded on the right, labels shifted by one.

    Args:
        samples: torchtune samples: ``tokens`` and unshifted ``labels``, lists or tensors of one
            length. Those of a ``PackedDataset`` also have ``input_pos`` and ``seq_lens``. A true
            ``blank`` marks a sample that only fills up a batch and counts nowhere.
        pad_id: Token to pad with. It may be a real token too, as end-of-sequence often is.
        ignore_index: Label of positions without a target.
        teacher_pad_id: The same as ``pad_id`` for what a teacher reads of its own, see
            `TwoTokenizers` and `TeacherPrompt`.

    Returns:
        A position's target is the sample's *next* label; there is none where the next token begins
        another document. ``inputs`` are ``tokens`` [B, S] int64 and ``lengths`` [B], or, of packed
        samples, ``input_pos`` (a position's place in its document) and ``documents``, of which a
        model makes its attention mask: that grows with S².

    Raises:
        ValueError: If a sample has not one label for each token.
    """
    own = read = _rows(samples, pad_id, ignore_index)
    inputs = {"tokens": own.tokens, "lengths": own.lengths}
    if "input_pos" in samples[0]:
        input_pos = torch.stack([torch.as_tensor(sample["input_pos"]) for sample in samples])
        inputs = {"tokens": own.tokens, "input_pos": input_pos, "documents": own.documents}
    valid, labelled = own.documents >= 0, own.labels != ignore_index
    scopes = {"labels": labelled, "all": valid, "prompt": valid & ~labelled}
    teacher = None
    if "teacher_tokens" in samples[0]:
        read = _rows([_of_teacher(sample) for sample in samples], teacher_pad_id, ignore_index)
        met = [torch.as_tensor(s["teacher_index"], dtype=torch.long) for s in samples]
        index = pad_sequence(met, batch_first=True, padding_value=UNPAIRED)
        scopes["matched"] = valid & (index != UNPAIRED)
        teacher = TeacherInputs(
            {"tokens": read.tokens, "lengths": read.lengths},
            read.labels,
            read.documents,
            index.clamp(min=0),
        )
    return Batch(
        inputs,
        own.labels,
        {scope: {LOGITS: mask, DECODER: mask} for scope, mask in scopes.items()},
        {LOGITS: own.documents, DECODER: own.documents},
        read.keys,
        teacher,
    )


class _Rows(NamedTuple):
    """Samples below one another: ``tokens``, shifted ``labels`` and ``documents``, each [B, S]."""

    tokens: Tensor
    labels: Tensor
    documents: Tensor
    keys: Tensor  # [documents, 2]

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row that are no padding [B]."""
        return (self.documents >= 0).sum(1)


def _rows(samples: Sequence[Mapping[str, Any]], pad_id: int, ignore_index: int) -> _Rows:
    tokens = [torch.as_tensor(sample["tokens"], dtype=torch.long) for sample in samples]
    labels = [torch.as_tensor(sample["labels"], dtype=torch.long) for sample in samples]
    for token, label in zip(tokens, labels, strict=True):
        if len(token) != len(label):
            raise ValueError(f"a sample has {len(token)} tokens but {len(label)} labels")
    padded = pad_sequence(tokens, batch_first=True, padding_value=pad_id)
    targets = pad_sequence(labels, batch_first=True, padding_value=ignore_index).roll(-1, dims=1)
    documents = torch.full_like(padded, -1)
    keys: list[list[int]] = []
    for row, sample in enumerate(samples):
        for start, stop in _documents(sample):
            targets[row, start:stop][-1:] = ignore_index
            documents[row, start:stop] = len(keys)
            keys.append(key_of(padded[row, start:stop]))
    targets[documents < 0] = ignore_index
    return _Rows(padded, targets, documents, torch.tensor(keys, dtype=torch.long).view(-1, 2))


def _documents(sample: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Where each document of a sample begins and ends: one, those of a pack, or none if blank."""
    if sample.get("blank"):
        return []
    if "seq_lens" not in sample:
        return [(0, len(sample["tokens"]))]
    ends = torch.as_tensor(sample["seq_lens"]).cumsum(0).tolist()
    found = list(pairwise([0, *ends]))
    start, stop = found[-1]
    # torchtune counts a pack's padding as one more document, whose positions go on from the last
    # real one; a real document after the first always begins at position 0.
    if start > 0 and start < stop and sample["input_pos"][start] != 0:
        found.pop()
    return found


def documents_of(sample: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A sample's documents, each as a sample of its own; those of a pack begin at position 0."""
    return [
        {name: sample[name][start:stop] for name in ("tokens", "labels")}
        for start, stop in _documents(sample)
    ]


def _of_teacher(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The sample that a teacher with a tokenizer of its own reads."""
    own = {name: sample[f"teacher_{name}"] for name in ("tokens", "labels")}
    return own | {"blank": sample.get("blank")}
