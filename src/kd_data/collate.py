"""Samples to a batch. The only place where labels are shifted."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kd_data.two_tokenizers import collate_pairs


def collate(
    samples: Sequence[Mapping[str, Any]],
    pad_id: int,
    ignore_index: int = -100,
    teacher_pad_id: int = 0,
) -> dict[str, Tensor]:
    """Pad samples on the right and shift their labels by one.

    Args:
        samples: torchtune samples: ``tokens`` and unshifted ``labels``, lists or tensors of one
            length. Those of a ``PackedDataset`` also have ``input_pos`` and ``seq_lens``. A true
            ``blank`` marks a sample that only fills up a batch and counts nowhere.
        pad_id: Token to pad with. It may be a real token too, as end-of-sequence often is.
        ignore_index: Label of positions without a target.
        teacher_pad_id: The same as ``pad_id`` for samples of `TwoTokenizers`.

    Returns:
        B samples, S the longest sample's length:

        - ``tokens`` [B, S] int64.
        - ``labels`` [B, S] int64: the target of each position, which is the sample's *next* label,
          or ``ignore_index`` where there is none or the next token begins another document.
        - ``valid`` [B, S] bool: real tokens, not padding.
        - ``documents`` [B, S] int64: which document a position belongs to, counted from 0 over the
          whole batch; -1 for padding.
        - ``input_pos`` [B, S], for packed samples: each position's place in its document. The
          attention mask is left to `with_mask`: it grows with S².
        - ``teacher_tokens`` and ``teacher_labels`` [B, T], ``matched`` and ``teacher_index``
          [B, S], for samples of `TwoTokenizers`: see `collate_pairs`.

    Raises:
        ValueError: If a sample has not one label for each token.
    """
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
    if "teacher_tokens" in samples[0]:
        views = [{k: s[f"teacher_{k}"] for k in ("tokens", "labels")} for s in samples]
        teacher = collate(views, teacher_pad_id, ignore_index)
        batch |= {f"teacher_{name}": teacher[name] for name in ("tokens", "labels")}
        batch |= collate_pairs(samples)
        batch["matched"] &= ~blank[:, None]
    return batch


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
