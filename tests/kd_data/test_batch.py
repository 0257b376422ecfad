"""A batch as one thing: what counts where, moved and written down with each tensor once."""

import torch
from safetensors.torch import load_file, save_file
from torchtune.datasets import PackedDataset

from kd_data import collate
from kd_data.batch import DECODER, LOGITS

IGNORE = -100
META = torch.device("meta")


def plain():
    """Four tokens whose first two are a prompt, two tokens, and a blank sample."""
    samples = [([5, 6, 7, 8], [IGNORE, IGNORE, 7, 8]), ([5, 9], [5, 9]), ([1, 2], [1, 2])]
    samples = [{"tokens": tokens, "labels": labels} for tokens, labels in samples]
    return collate([*samples[:2], samples[2] | {"blank": True}], pad_id=0)


def packed():
    samples = [{"tokens": [i] * 3, "labels": [i] * 3} for i in range(5)]
    return collate(list(PackedDataset(samples, max_seq_len=8)), pad_id=0)


def two_tokenizers():
    sample = {"tokens": [1, 2, 3], "labels": [1, 2, 3], "teacher_index": [-1, 0, -1]}
    return collate([sample | {"teacher_tokens": [4, 5], "teacher_labels": [4, 5]}], pad_id=0)


KINDS = (plain, packed, two_tokenizers)


def test_every_real_position_is_a_label_or_a_prompt():
    batch = plain()
    expected = {
        "labels": [[0, 1, 1, 0], [1, 0, 0, 0], [0] * 4],
        "all": [[1] * 4, [1, 1, 0, 0], [0] * 4],
        "prompt": [[1, 0, 0, 1], [0, 1, 0, 0], [0] * 4],
    }
    assert {scope: places[LOGITS].int().tolist() for scope, places in batch.scopes.items()} == (
        expected
    )
    for make in KINDS:
        scopes = {name: places[LOGITS] for name, places in make().scopes.items()}
        assert torch.equal(scopes["labels"] | scopes["prompt"], scopes["all"])
        assert not (scopes["labels"] & scopes["prompt"]).any()


def test_positions_belong_to_a_document_where_they_are_real():
    for make in KINDS:
        batch = make()
        assert torch.equal(batch.documents[DECODER] >= 0, batch.scopes["all"][LOGITS])


def test_a_mask_is_made_once_for_both_places_and_stays_one_on_the_way():
    for make in KINDS:
        for batch in (make(), make().to(META), make().map(torch.clone)):
            for places in (*batch.scopes.values(), batch.documents):
                assert places[LOGITS] is places[DECODER]
    moved = packed().map(torch.clone)
    assert moved.inputs["documents"] is moved.documents[DECODER]


def test_all_of_it_moves():
    for make in KINDS:
        batch = make()
        moved = batch.to(META)
        assert {name: t.shape for name, t in moved.tensors().items()} == {
            name: t.shape for name, t in batch.tensors().items()
        }
        assert all(tensor.is_meta for tensor in moved.tensors().values())


def test_what_is_there_already_is_not_copied():
    batch = two_tokenizers()
    again = batch.to(torch.device("cpu"))
    for name, tensor in again.tensors().items():
        assert tensor is batch.tensors()[name]


def test_every_tensor_can_be_written_and_found_again(tmp_path):
    """Under names that say what it is; safetensors refuses one that comes twice."""
    for make in KINDS:
        batch = make()
        save_file(batch.tensors(), tmp_path / "batch.safetensors")
        found = load_file(tmp_path / "batch.safetensors")
        assert torch.equal(found["tokens"], batch.inputs["tokens"])
        assert torch.equal(found["labels"], batch.labels)
        assert torch.equal(found["scopes.prompt.logits"], batch.scopes["prompt"][LOGITS])
        assert torch.equal(found["sample_keys"], batch.sample_keys)
        if batch.teacher is not None:
            assert torch.equal(found["teacher.tokens"], batch.teacher.inputs["tokens"])
            assert torch.equal(found["teacher.index"], batch.teacher.index)
    assert packed().tensors().keys() >= {"input_pos", "documents"}
