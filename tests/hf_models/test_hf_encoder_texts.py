"""Texts for encoders and encoder-decoders, against transformers' own calls."""

from pathlib import Path

import families
import pytest
import tiny
from transformers import AutoTokenizer, MBartTokenizer

from hf_models import HFTokenizer

SHORT, LONG = "a name is bound", "to an object . the loop runs until its condition is false"


@pytest.fixture(scope="module", params=["bert", "bart", "gpt2", "mbart"])
def directory(request, tmp_path_factory) -> Path:
    """Markers and token types; markers; neither; and other markers around a target."""
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "gpt2":
        tiny.save_tokenizer(directory)
    elif request.param == "mbart":
        words = [(f"▁{word}", -1.0) for word in sorted(set(families.TEXT.split()))]
        special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
        mbart = MBartTokenizer(vocab=special + words, src_lang="en_XX", tgt_lang="ro_RO")
        mbart.save_pretrained(directory)
    else:
        families.save_word_tokenizer(directory, token_types=request.param == "bert")
    return directory


@pytest.mark.parametrize("max_seq_len", [None, 9])
@pytest.mark.parametrize("pair", [None, LONG])
@pytest.mark.parametrize("text", [SHORT, LONG])
def test_texts_are_those_of_transformers(directory, text, pair, max_seq_len):
    hf = AutoTokenizer.from_pretrained(directory)
    if max_seq_len is None:
        expected = hf(text, pair)
    else:
        expected = hf(text, pair, truncation="longest_first", max_length=max_seq_len)
    found = HFTokenizer(directory, max_seq_len).encode_text(text, pair)
    assert found["tokens"] == expected["input_ids"]
    assert found.get("token_type_ids") == expected.get("token_type_ids")
    assert found.keys() <= {"tokens", "token_type_ids"}


@pytest.mark.parametrize(
    ("max_seq_len", "max_length", "limit"), [(None, None, None), (7, None, 7), (12, 5, 5)]
)
def test_targets_are_those_of_transformers(directory, max_seq_len, max_length, limit):
    hf = AutoTokenizer.from_pretrained(directory)
    options = {} if limit is None else {"truncation": True, "max_length": limit}
    tokens = HFTokenizer(directory, max_seq_len).encode_target(LONG, max_length)
    assert tokens == hf(text_target=LONG, **options)["input_ids"]
    assert limit is None or len(tokens) == limit


def test_markers_stay_and_the_longer_text_is_cut_first(tmp_path):
    families.save_word_tokenizer(tmp_path, token_types=True)
    found = HFTokenizer(tmp_path, 11).encode_text(SHORT, LONG)
    words = HFTokenizer(tmp_path).decode(found["tokens"]).split()
    assert words == ["<s>", "a", "name", "is", "bound", "</s>", "to", "an", "object", ".", "</s>"]
    assert found["token_type_ids"] == [0] * 6 + [1] * 5


def test_a_target_has_the_markers_of_its_own_language(tmp_path):
    mbart = MBartTokenizer(src_lang="en_XX", tgt_lang="ro_RO")
    mbart.save_pretrained(tmp_path)
    tokenizer = HFTokenizer(tmp_path)
    # The source's after a target, as before it.
    for _ in range(2):
        assert tokenizer.decode(tokenizer.encode_text(SHORT)["tokens"]).endswith("</s>en_XX")
        assert tokenizer.decode(tokenizer.encode_target(SHORT)).endswith("</s>ro_RO")


def test_cut_texts_leave_the_others_whole(directory):
    tokenizer = HFTokenizer(directory, 6)
    before = tokenizer.encode(LONG)
    assert len(tokenizer.encode_text(LONG)["tokens"]) == 6
    assert tokenizer.encode(LONG) == before


def test_room_for_nothing_but_markers_is_refused(tmp_path):
    families.save_word_tokenizer(tmp_path)
    tokenizer = HFTokenizer(tmp_path, 3)
    assert len(tokenizer.encode_text(SHORT)["tokens"]) == 3
    with pytest.raises(ValueError, match="3 tokens have no room for a text beside 3 markers"):
        tokenizer.encode_text(SHORT, LONG)
    with pytest.raises(ValueError, match=r"beside 2 markers; raise .*max_target_len$"):
        tokenizer.encode_target(SHORT, 2)


def test_a_long_text_warns_of_nothing(directory, caplog):
    tokenizer = HFTokenizer(directory)
    tokenizer._hf.model_max_length = 8
    tokenizer.encode_text(LONG)
    tokenizer.encode_target(LONG)
    assert not caplog.records


def test_the_embedded_encoder_reads_pairs(embedded_bert_dir):
    found = HFTokenizer(embedded_bert_dir, 9).encode_text("A loop.", "It runs and it runs.")
    tokens = AutoTokenizer.from_pretrained(embedded_bert_dir).convert_ids_to_tokens(found["tokens"])
    assert tokens == ["[CLS]", "a", "loop", ".", "[SEP]", "it", "runs", "and", "[SEP]"]
    assert found["token_type_ids"] == [0] * 5 + [1] * 4
