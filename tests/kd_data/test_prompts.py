"""Where a document's prompt ends."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_data import collate
from kd_data.tasks.prompts import prompts_of
from kd_data.tasks.seq2seq_lm import collate_seq2seq

IGNORED = -100
documents = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6)).filter(lambda one: sum(one) > 0),
    min_size=1,
    max_size=5,
)


def sample(prompt, labelled, start=0):
    tokens = list(range(start + 1, start + 1 + prompt + labelled))
    return {"tokens": tokens, "labels": [IGNORED] * prompt + tokens[prompt:]}


def packed(samples):
    """One row of several documents, as torchtune packs them."""
    lengths = [len(one["tokens"]) for one in samples]
    return {
        "tokens": torch.tensor([token for one in samples for token in one["tokens"]]),
        "labels": torch.tensor([label for one in samples for label in one["labels"]]),
        "input_pos": torch.cat([torch.arange(length) for length in lengths]),
        "seq_lens": lengths,
    }


@given(documents)
def test_it_is_what_comes_before_the_first_label(sizes):
    samples = [sample(*size, start=20 * i) for i, size in enumerate(sizes)]
    for batch in (collate(samples, 0), collate([packed(samples)], 0)):
        found = prompts_of(batch)
        assert len(found) == len(samples)
        for one, (prompt, labelled), whole in zip(found, sizes, samples, strict=True):
            # The first token is nobody's target: a text that is labelled throughout begins there.
            expected = max(prompt, 1) if labelled else prompt
            assert one.tokens.tolist() == whole["tokens"][:expected]
            assert one.given.tolist() == whole["tokens"][expected:]


@given(documents, st.integers(1, 8))
def test_it_may_be_so_many_tokens_instead(sizes, number):
    samples = [sample(*size, start=20 * i) for i, size in enumerate(sizes)]
    for one, whole in zip(prompts_of(collate(samples, 0), number), samples, strict=True):
        assert one.tokens.tolist() == whole["tokens"][:number]
        assert one.given.tolist() == whole["tokens"][number:]


def test_of_an_encoder_decoder_it_is_the_source():
    samples = [{"tokens": [5, 6, 7], "labels": [8]}, {"tokens": [9], "labels": [3, 4]}]
    first, second = prompts_of(collate_seq2seq(samples, pad_id=0, decoder_start_id=1))
    assert (first.tokens.tolist(), first.given.tolist()) == ([5, 6, 7], [8])
    assert (second.tokens.tolist(), second.given.tolist()) == ([9], [3, 4])
    made = first.sample(torch.tensor([2, 2]), IGNORED, apart=True)
    assert [made[name].tolist() for name in ("tokens", "labels")] == [[5, 6, 7], [2, 2]]


def test_blank_samples_have_none():
    batch = collate([sample(2, 2), sample(2, 2) | {"blank": True}], 0)
    assert len(prompts_of(batch)) == 1


def test_another_completion_takes_the_place_of_the_data_s():
    (prompt,) = prompts_of(collate([sample(3, 2)], 0))
    made = prompt.sample(torch.tensor([50, 60]), IGNORED, apart=False)
    assert made["tokens"].tolist() == [1, 2, 3, 50, 60]
    assert made["labels"].tolist() == [IGNORED] * 3 + [50, 60]
