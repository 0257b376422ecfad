"""What the batches of encoders and encoder-decoders share: padded texts and their documents.

Shapes: B samples, S the longest text's length.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class Texts(NamedTuple):
    """Texts below one another.

    Attributes:
        ids: [B, S], padded on the right.
        valid: [B, S] bool, no padding; nothing of a blank sample.
        documents: [B, S], the row's number among those that are not blank, -1 elsewhere.
    """

    ids: Tensor
    valid: Tensor
    documents: Tensor

    @property
    def attention_mask(self) -> Tensor:
        """[B, S] int64, 1 for what is read; a blank row reads its first token, as one must be."""
        mask = self.valid.long()
        mask[:, 0] = 1
        return mask


def padded(
    samples: Sequence[Mapping[str, Any]], name: str, pad_id: int, limit: int | None
) -> Texts:
    """One list of ids of each sample.

    Raises:
        ValueError: If one is longer than ``limit``, the positions that the model takes.
    """
    rows = [torch.as_tensor(sample[name], dtype=torch.long) for sample in samples]
    longest = max(map(len, rows))
    if limit is not None and longest > limit:
        raise ValueError(
            f"a sample has {longest} {name}, but the model takes {limit} positions; set "
            f"tokenizer.max_seq_len: {limit}"
        )
    ids = pad_sequence(rows, batch_first=True, padding_value=pad_id)
    lengths = torch.tensor(
        [0 if s.get("blank") else len(r) for s, r in zip(samples, rows, strict=True)]
    )
    valid = torch.arange(ids.shape[1]) < lengths[:, None]
    return Texts(ids, valid, torch.where(valid, _numbers(samples)[:, None], -1))


def _numbers(samples: Sequence[Mapping[str, Any]]) -> Tensor:
    """Counts the samples that are not blank, [B]."""
    return torch.tensor([not sample.get("blank") for sample in samples]).long().cumsum(0) - 1
