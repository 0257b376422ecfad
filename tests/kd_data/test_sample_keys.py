"""A document's key depends on the tokens that the teacher reads of it, and on nothing else."""

from hashlib import blake2b
from struct import pack, unpack

import torch
from hypothesis import given
from hypothesis import strategies as st
from torchtune.datasets import PackedDataset

from kd_data import collate

DOCUMENTS = st.lists(
    st.lists(st.integers(0, 5), min_size=1, max_size=9), min_size=1, max_size=12
)  # few ids, so that one is padding, an end and a word, and some documents are the same


def samples_of(documents):
    return [{"tokens": tokens, "labels": tokens} for tokens in documents]


def keys(samples, **options):
    return [tuple(key) for key in collate(samples, pad_id=0, **options).sample_keys.tolist()]


def expected(tokens):
    """Two of the little-endian whole numbers that 128 bits of BLAKE2b are."""
    text = pack(f"<{len(tokens)}q", *tokens)
    return unpack("<2q", blake2b(text, digest_size=16).digest())


@given(DOCUMENTS)
def test_a_key_is_a_hash_of_the_tokens_without_padding(documents):
    assert keys(samples_of(documents)) == [expected(tokens) for tokens in documents]
    alone = [key for sample in samples_of(documents) for key in keys([sample])]
    assert alone == keys(samples_of(documents)), "whatever shares the batch"


@given(DOCUMENTS, st.randoms())
def test_the_order_moves_the_keys_with_the_documents(documents, random):
    order = random.sample(range(len(documents)), len(documents))
    here = keys(samples_of(documents))
    assert keys(samples_of([documents[i] for i in order])) == [here[i] for i in order]


@given(DOCUMENTS, st.integers(9, 20))
def test_packed_or_not(documents, row):
    packs = list(PackedDataset(samples_of(documents), max_seq_len=row))
    assert keys(packs) == keys(samples_of(documents))


@given(DOCUMENTS, st.integers(9, 20))
def test_a_position_of_a_pack_finds_the_key_of_its_document(documents, row):
    batch = collate(list(PackedDataset(samples_of(documents), max_seq_len=row)), pad_id=0)
    numbers = batch.documents["decoder"]
    for number, key in enumerate(batch.sample_keys.tolist()):
        assert tuple(key) == expected(batch.inputs["tokens"][numbers == number].tolist())
    assert numbers.max() + 1 == len(documents)


@given(DOCUMENTS, st.data())
def test_any_other_token_gives_another_key(documents, data):
    document = data.draw(st.sampled_from(documents))
    place = data.draw(st.integers(0, len(document) - 1))
    (before,) = keys(samples_of([document]))
    changed = [*document]
    changed[place] += 1
    longer, shorter = [*document, 0], document[:-1]
    found = {before, *keys(samples_of([changed, longer, shorter]))}
    assert len(found) == 4


@given(DOCUMENTS, st.randoms())
def test_blank_samples_have_none(documents, random):
    samples = [s | {"blank": random.random() < 0.5} for s in samples_of(documents)]
    real = [s for s in samples if not s["blank"]]
    batch = collate(samples, pad_id=0)
    assert batch.sample_keys.shape == (len(real), 2)
    assert [tuple(key) for key in batch.sample_keys.tolist()] == [
        expected(sample["tokens"]) for sample in real
    ]
    numbered = [row[0] for row in batch.documents["logits"].tolist() if row[0] >= 0]
    assert numbered == list(range(len(real)))


def two_sided(student, teacher):
    sample = {"tokens": student, "labels": student, "teacher_index": [-1] * len(student)}
    return sample | {"teacher_tokens": teacher, "teacher_labels": teacher}


def test_with_two_tokenizers_the_teachers_tokens_count():
    samples = [two_sided([1, 2, 3], [7]), two_sided([4], [8, 9, 10, 11, 12])]
    assert keys(samples, teacher_pad_id=5) == [expected([7]), expected([8, 9, 10, 11, 12])]
    other_student = [two_sided([1], [7]), two_sided([4, 4], [8, 9, 10, 11, 12])]
    assert keys(other_student) == keys(samples)
    samples[0]["blank"] = True
    assert keys(samples) == [expected([8, 9, 10, 11, 12])]


def test_tensors_have_the_keys_of_lists():
    tokens = torch.tensor([3, 1, 2], dtype=torch.int32)
    assert keys(samples_of([tokens])) == [expected([3, 1, 2])]
