"""Samples to a batch, a function for each task. The only place where labels are shifted."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kd_data.batch import DECODER, LOGITS, Batch, TeacherInputs
from kd_data.two_tokenizers import UNPAIRED

_KEY_BYTES = 16


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
        teacher_pad_id: The same as ``pad_id`` for samples of `TwoTokenizers`.

    Returns:
        B samples, S the longest sample's length. A position's target is the sample's *next* label;
        there is none where the next token begins another document. Its ``inputs`` are ``tokens``
        [B, S] int64 and, for packed samples, ``input_pos`` (a position's place in its document) and
        ``documents``, of which the model makes its attention mask: that grows with S².

    Raises:
        ValueError: If a sample has not one label for each token.
    """
    batch = _padded(samples, pad_id, ignore_index)
    tokens, labels, valid = batch["tokens"], batch["labels"], batch["valid"]
    documents = batch["documents"]
    inputs = {"tokens": tokens}
    if "input_pos" in batch:
        inputs |= {"input_pos": batch["input_pos"], "documents": documents}
    labelled = labels != ignore_index
    scopes = {"labels": labelled, "all": valid, "prompt": valid & ~labelled}
    keyed, of_keyed, teacher = tokens, documents, None
    if "teacher_tokens" in samples[0]:
        views = [{k: s[f"teacher_{k}"] for k in ("tokens", "labels")} for s in samples]
        own = _padded(views, teacher_pad_id, ignore_index)
        rows = [torch.as_tensor(s["teacher_index"], dtype=torch.long) for s in samples]
        index = pad_sequence(rows, batch_first=True, padding_value=UNPAIRED)
        teacher = TeacherInputs({"tokens": own["tokens"]}, own["labels"], index.clamp(min=0))
        scopes["matched"] = (index != UNPAIRED) & (documents >= 0)
        keyed, of_keyed = own["tokens"], own["documents"]
    return Batch(
        inputs,
        labels,
        {name: {LOGITS: mask, DECODER: mask} for name, mask in scopes.items()},
        {LOGITS: documents, DECODER: documents},
        _keys(keyed, of_keyed),
        teacher,
    )


def _padded(
    samples: Sequence[Mapping[str, Any]], pad_id: int, ignore_index: int
) -> dict[str, Tensor]:
    """``tokens``, shifted ``labels``, ``valid``, ``documents``; of packs ``input_pos`` too."""
    tokens = [torch.as_tensor(sample["tokens"], dtype=torch.long) for sample in samples]
    labels = [torch.as_tensor(sample["labels"], dtype=torch.long) for sample in samples]
    for token, label in zip(tokens, labels, strict=True):
        if len(token) != len(label):
            raise ValueError(f"a sample has {len(token)} tokens but {len(label)} labels")
    targets = [label.roll(-1) for label in labels]
    for target in targets:
        target[-1:] = ignore_index
    batch = {
        "tokens": pad_sequence(tokens, batch_first=True, padding_value=pad_id),
        "labels": pad_sequence(targets, batch_first=True, padding_value=ignore_index),
    }
    if "seq_lens" in samples[0]:
        batch = _separate_documents(batch, samples, ignore_index)
    else:
        lengths = torch.tensor([len(token) for token in tokens])
        batch["valid"] = torch.arange(batch["tokens"].shape[1]) < lengths[:, None]
        batch["documents"] = torch.arange(len(samples))[:, None].expand_as(batch["valid"])
    blank = torch.tensor([bool(sample.get("blank")) for sample in samples])
    batch["valid"] &= ~blank[:, None]
    batch["documents"] = batch["documents"].masked_fill(~batch["valid"], -1)
    batch["labels"].masked_fill_(blank[:, None], ignore_index)
    return batch


def _keys(tokens: Tensor, documents: Tensor) -> Tensor:
    """A hash of each document's tokens; 0 for a number that no position has."""
    keys = torch.zeros(int(documents.max()) + 1, _KEY_BYTES // 8, dtype=torch.int64)
    for number in documents.unique().tolist():
        if number >= 0:
            text = tokens[documents == number].numpy().tobytes()
            digest = blake2b(text, digest_size=_KEY_BYTES).digest()
            keys[number] = torch.from_numpy(np.frombuffer(digest, np.int64).copy())
    return keys


def _separate_documents(
    batch: dict[str, Tensor], samples: Sequence[Mapping[str, Any]], ignore_index: int
) -> dict[str, Tensor]:
    seq_lens = [torch.as_tensor(sample["seq_lens"]) for sample in samples]
    input_pos = torch.stack([torch.as_tensor(sample["input_pos"]) for sample in samples])
    valid = torch.ones_like(batch["tokens"], dtype=torch.bool)
    documents = torch.empty_like(batch["tokens"])
    first = 0
    for row, lengths in enumerate(seq_lens):
        starts = lengths.cumsum(0) - lengths
        numbers = torch.arange(first, first + len(lengths))
        documents[row] = numbers.repeat_interleave(lengths)
        first += len(lengths)
        batch["labels"][row, starts[1:] - 1] = ignore_index
        # torchtune counts a pack's padding as one more document, whose positions go on from the
        # last real one; a real document after the first always begins at position 0.
        if len(starts) > 1 and input_pos[row, starts[-1]] != 0:
            valid[row, starts[-1] :] = False
    return batch | {"valid": valid, "documents": documents, "input_pos": input_pos}
