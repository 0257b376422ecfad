import pytest
import torch
from torch.utils.data import DataLoader
from torchtune.datasets import PackedDataset

from kd_data import collate

IGNORE = -100


def sample(tokens, labels=None):
    return {"tokens": tokens, "labels": tokens if labels is None else labels}


def valid(batch):
    return batch.scopes["all"]["logits"]


def test_each_position_gets_the_next_label():
    batch = collate([sample([5, 6, 7, 8], [IGNORE, IGNORE, 7, 8]), sample([5, 9])], pad_id=0)
    assert batch.inputs["tokens"].tolist() == [[5, 6, 7, 8], [5, 9, 0, 0]]
    assert batch.labels.tolist() == [[IGNORE, 7, 8, IGNORE], [9, IGNORE, IGNORE, IGNORE]]
    assert valid(batch).tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.inputs.keys() == {"tokens", "lengths"}
    assert batch.inputs["lengths"].tolist() == [4, 2]
    assert batch.inputs["tokens"].dtype == batch.labels.dtype == torch.int64
    assert batch.documents["decoder"].tolist() == [[0] * 4, [1, 1, -1, -1]]


def test_padding_is_a_matter_of_length():
    # The padding token is also the end of both texts, and a label.
    batch = collate([sample([1, 2, 2, 2]), sample([2])], pad_id=2)
    assert batch.inputs["tokens"].tolist() == [[1, 2, 2, 2], [2, 2, 2, 2]]
    assert batch.labels.tolist() == [[2, 2, 2, IGNORE], [IGNORE] * 4]
    assert valid(batch).tolist() == [[True] * 4, [True, False, False, False]]


def test_tensors_do_as_well_and_are_not_changed():
    tokens = torch.tensor([3, 4, 5])
    batch = collate([sample(tokens), sample([6])], pad_id=0, ignore_index=-1)
    assert batch.labels.tolist() == [[4, 5, -1], [-1, -1, -1]]
    assert tokens.tolist() == [3, 4, 5]


def test_tokens_without_labels_are_refused():
    with pytest.raises(ValueError, match="3 tokens but 2 labels"):
        collate([sample([1, 2, 3], [1, 2])], pad_id=0)


def pack(documents, max_seq_len, split_across_pack=False):
    return PackedDataset(
        [sample(document) for document in documents],
        max_seq_len=max_seq_len,
        split_across_pack=split_across_pack,
    )


def test_packed_documents_stay_apart():
    # [1 2 3 | 4 5 | pad pad pad] and [6 7 8 9 10 11 | 12 0]
    packs = pack([[1, 2, 3], [4, 5], [6, 7, 8, 9, 10, 11], [12, 0]], max_seq_len=8)
    batch = collate(list(packs), pad_id=0)
    assert batch.inputs["tokens"].tolist() == [
        [1, 2, 3, 4, 5, 0, 0, 0],
        [6, 7, 8, 9, 10, 11, 12, 0],
    ]
    assert batch.labels.tolist() == [
        [2, 3, IGNORE, 5, IGNORE, IGNORE, IGNORE, IGNORE],
        [7, 8, 9, 10, 11, IGNORE, 0, IGNORE],
    ]
    assert valid(batch).tolist() == [[True] * 5 + [False] * 3, [True] * 8]
    assert batch.documents["decoder"].tolist() == [[0] * 3 + [1] * 2 + [-1] * 3, [2] * 6 + [3] * 2]
    assert batch.inputs["documents"] is batch.documents["decoder"]
    assert batch.inputs["input_pos"][1].tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert "mask" not in batch.inputs, "it would take more than all else together"


def test_documents_split_across_packs():
    # [1 2 3 4] [5 6 7 | 8] [9 pad pad pad]: the last pack goes on with the second document.
    packs = pack([[1, 2, 3, 4, 5, 6, 7], [8, 9]], max_seq_len=4, split_across_pack=True)
    batch = collate(list(packs), pad_id=0)
    assert batch.labels.tolist() == [
        [2, 3, 4, IGNORE],
        [6, 7, IGNORE, IGNORE],
        [IGNORE, IGNORE, IGNORE, IGNORE],
    ]
    assert valid(batch).tolist() == [[True] * 4, [True] * 4, [True, False, False, False]]


def test_works_in_a_data_loader_worker():
    packs = pack([[1, 2, 3], [4, 5]], max_seq_len=4)
    loader = DataLoader(packs, batch_size=2, num_workers=1, collate_fn=lambda s: collate(s, 0))
    (batch,) = loader
    assert batch.documents["decoder"].tolist() == [[0, 0, 0, -1], [1, 1, -1, -1]]
    assert batch.scopes["all"]["logits"] is batch.scopes["all"]["decoder"]
