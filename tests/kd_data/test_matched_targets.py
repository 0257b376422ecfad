"""The pairs of targets in a batch, and the teacher's hidden states moved to where they belong."""

import pytest
import torch
from torch.utils.data import DataLoader

from kd_data import collate
from kd_data.two_tokenizers import UNPAIRED, TwoTokenizers

IGNORE = -100


class Letters:
    """A token for each letter, or for each two: its id in hexadecimal spells them."""

    bos_id = eos_id = None

    def decode(self, ids):
        return "".join(f"{token:x}" for token in ids)


SAMPLES = [
    [{"tokens": t, "labels": [IGNORE, *t[1:]]}] for t in ([0xA, 0xB, 0xC, 0xD], [0xAB, 0xCD])
]
LONGER = [[{"tokens": t, "labels": t}] for t in ([0xA, 0xB, 0xCD], [0xAB, 0xC, 0xD, 0xE])]


def two(samples):
    return TwoTokenizers(*samples, Letters(), Letters(), IGNORE)[0]


def matched(batch):
    return batch.scopes["matched"]["logits"]


def test_where_the_teacher_meets_the_student():
    samples = [two(SAMPLES), two(LONGER)]
    assert [s["teacher_index"] for s in samples] == [
        [UNPAIRED, UNPAIRED, 0, UNPAIRED],
        [UNPAIRED, 1, UNPAIRED],
    ]
    batch = collate(samples, pad_id=7, teacher_pad_id=8)
    assert matched(batch).tolist() == [[False, False, True, False], [False, True, False, False]]
    assert batch.teacher_inputs()["tokens"].tolist() == [[0xAB, 0xCD, 8, 8], [0xAB, 0xC, 0xD, 0xE]]
    assert batch.teacher.labels.tolist() == [
        [0xCD, IGNORE, IGNORE, IGNORE],
        [0xC, 0xD, 0xE, IGNORE],
    ]
    hidden = torch.randn(2, 4, 3)
    moved = batch.at_student_positions(hidden)
    assert moved.shape == (*batch.inputs["tokens"].shape, 3)
    assert torch.equal(moved[0, 2], hidden[0, 0])
    assert torch.equal(moved[1, 1], hidden[1, 1])


def test_paired_share():
    """Of 3 and of 2 targets one each."""
    student, teacher = (SAMPLES[i] + LONGER[i] for i in (0, 1))
    assert TwoTokenizers(student, teacher, Letters(), Letters(), IGNORE).paired_share == 2 / 5
    silent = [{"tokens": [1, 2], "labels": [IGNORE, IGNORE]}]
    assert TwoTokenizers(silent, silent, Letters(), Letters(), IGNORE).paired_share is None


def test_a_blank_sample_matches_nothing():
    samples = [two(SAMPLES), two(SAMPLES) | {"blank": True}]
    assert matched(collate(samples, pad_id=7)).sum(1).tolist() == [1, 0]


def test_a_worker_process_pairs(tokenizer):
    texts = ["Numbers are immutable.", "Modules are imported once."]
    samples = [{"tokens": (ids := tokenizer.encode(text)), "labels": ids} for text in texts]
    dataset = TwoTokenizers(samples, samples, tokenizer, tokenizer, IGNORE)
    loader = DataLoader(dataset, batch_size=2, num_workers=1, collate_fn=lambda s: collate(s, 0))
    (batch,) = loader
    assert torch.equal(matched(batch), batch.labels != IGNORE)
    assert torch.equal(batch.teacher_inputs()["tokens"], batch.inputs["tokens"])


def test_one_tokenizer_leaves_everything_as_it_is():
    batch = collate([{"tokens": [1, 2], "labels": [1, 2]}], pad_id=0)
    assert batch.teacher_inputs() is batch.inputs
    assert "matched" not in batch.scopes
    hidden = torch.randn(1, 2, 3)
    assert batch.at_student_positions(hidden) is hidden


def test_unequal_datasets_are_refused():
    with pytest.raises(ValueError, match=r"1 samples .* 2 with the teacher's"):
        TwoTokenizers([{}], [{}, {}], None, None)
