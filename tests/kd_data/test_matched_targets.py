"""Which target of the student meets which of the teacher."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_data import collate
from kd_data.two_tokenizers import TwoTokenizers, at_student_positions, of_teacher

IGNORE = -100
sides = st.lists(st.booleans(), min_size=1, max_size=9)  # which tokens are a label


def sample(labelled, teacher_labelled):
    tokens, teacher_tokens = range(len(labelled)), range(100, 100 + len(teacher_labelled))
    return {
        "tokens": list(tokens),
        "labels": [t if on else IGNORE for t, on in zip(tokens, labelled, strict=True)],
        "teacher_tokens": list(teacher_tokens),
        "teacher_labels": [
            t if on else IGNORE for t, on in zip(teacher_tokens, teacher_labelled, strict=True)
        ],
    }


@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=4))
def test_the_nth_target_meets_the_nth(rows):
    batch = collate([sample(*row) for row in rows], pad_id=7, teacher_pad_id=8)
    teacher = of_teacher(batch)
    assert ((teacher["tokens"] >= 100) | (teacher["tokens"] == 8)).all()
    for i, (own, teachers) in enumerate(rows):
        # Position j predicts token j + 1, so these are the positions whose next token is a label.
        student_at = [j - 1 for j in range(1, len(own)) if own[j]]
        teacher_at = [j - 1 for j in range(1, len(teachers)) if teachers[j]]
        expected = dict(zip(student_at, teacher_at, strict=False))
        matched = batch["matched"][i].nonzero().flatten().tolist()
        assert {j: batch["teacher_index"][i, j].item() for j in matched} == expected

    hidden = torch.randn(*teacher["tokens"].shape, 3)
    moved = at_student_positions(hidden, batch)
    assert moved.shape == (*batch["tokens"].shape, 3)
    for row, position in batch["matched"].nonzero().tolist():
        wanted = hidden[row, batch["teacher_index"][row, position]]
        assert torch.equal(moved[row, position], wanted)


def test_a_blank_sample_matches_nothing():
    samples = [sample([True] * 4, [True] * 3), sample([True] * 4, [True] * 3) | {"blank": True}]
    assert collate(samples, pad_id=7)["matched"].sum(1).tolist() == [2, 0]


def test_one_tokenizer_leaves_everything_as_it_is():
    batch = collate([{"tokens": [1, 2], "labels": [1, 2]}], pad_id=0)
    assert of_teacher(batch) is batch
    hidden = torch.randn(1, 2, 3)
    assert at_student_positions(hidden, batch) is hidden


def test_unequal_datasets_are_refused():
    with pytest.raises(ValueError, match=r"1 samples .* 2 with the teacher's"):
        TwoTokenizers([{}], [{}, {}])
