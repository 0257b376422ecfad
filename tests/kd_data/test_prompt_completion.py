import json
from pathlib import Path

import pytest
import tiny
from lm_eval.models.huggingface import HFLM
from omegaconf import OmegaConf
from torchtune.config import instantiate
from transformers import AutoTokenizer, LlamaForCausalLM

from hf_models import HFTokenizer
from kd_data import prompt_completion_dataset

IGNORE = -100
ROWS = [
    {"prompt": "Numbers are", "completion": " immutable."},
    {"prompt": "The loop runs until ", "completion": "its condition is false."},
    {"prompt": "", "completion": "Strings are sequences."},
]


@pytest.fixture
def data_file(tmp_path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def labels_of(sample):
    return [label for label in sample["labels"] if label != IGNORE]


def test_completion_and_end_are_labels(tokenizer, data_file):
    dataset = prompt_completion_dataset(tokenizer, data_file)
    assert len(dataset) == len(ROWS)
    for row, sample in zip(ROWS, dataset, strict=True):
        assert tokenizer.decode(sample["tokens"]) == (
            row["prompt"] + row["completion"] + "<|im_end|>"
        )
        num_labels = len(labels_of(sample))
        assert sample["labels"] == (
            [IGNORE] * (len(sample["tokens"]) - num_labels) + sample["tokens"][-num_labels:]
        )
        # Blanks between the two belong to the completion's first token.
        text = tokenizer.decode(labels_of(sample))
        assert text.lstrip() == row["completion"].lstrip() + "<|im_end|>"


def test_same_split_as_lm_eval(tokenizer, tokenizer_dir, data_file):
    config = tiny.CONFIGS["llama"](
        vocab_size=400, hidden_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    lm = HFLM(
        pretrained=LlamaForCausalLM(config), tokenizer=AutoTokenizer.from_pretrained(tokenizer_dir)
    )
    for row, sample in zip(ROWS[:2], prompt_completion_dataset(tokenizer, data_file), strict=False):
        context, continuation = lm._encode_pair(row["prompt"], row["completion"])
        assert sample["tokens"] == [*context, *continuation, tokenizer.eos_id]
        assert labels_of(sample) == [*continuation, tokenizer.eos_id]


def test_prompt_can_be_trained_on(tokenizer, data_file):
    sample = prompt_completion_dataset(tokenizer, data_file, train_on_prompt=True)[0]
    assert sample["labels"] == sample["tokens"]


def test_too_long_loses_the_beginning(tokenizer_dir, data_file):
    long = prompt_completion_dataset(HFTokenizer(tokenizer_dir), data_file)[1]
    short = prompt_completion_dataset(HFTokenizer(tokenizer_dir, max_seq_len=12), data_file)[1]
    assert len(long["tokens"]) > 12
    assert short == {key: value[-12:] for key, value in long.items()}


def test_from_a_config(tokenizer, tmp_path, data_file):
    (tmp_path / "more.json").write_text(json.dumps([{"q": "A", "a": " name"}] * 10))
    node = {
        "_component_": "kd_data.prompt_completion_dataset",
        "data_files": [str(tmp_path / "more.json"), str(tmp_path / "more.json")],
        "prompt_column": "q",
        "completion_column": "a",
        "split": "train[:50%]",
    }
    dataset = instantiate(OmegaConf.create(node), tokenizer)
    assert len(dataset) == 10
    assert tokenizer.decode(dataset[3]["tokens"]) == "A name<|im_end|>"


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", {}, "is empty"),
        ("[]", {}, "cannot read rows"),
        ("{} {", {}, "cannot read rows"),
        ('{"prompt": "a", "text": "b"}', {}, "'completion' among prompt, text"),
        ('{"prompt": "a", "completion": 3}', {}, "'completion' holds something else than text"),
        ('{"prompt": "a", "completion": "b"}\n{"completion": "b"}', {}, "'prompt' holds something"),
        ('{"prompt": "a", "completion": "b"}', {"split": "train[:0]"}, "no data"),
        ('{"prompt": "a", "completion": "b"}', {"split": "test"}, 'Unknown split "test"'),
    ],
)
def test_unusable_files(tokenizer, tmp_path, text, options, words):
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        prompt_completion_dataset(tokenizer, str(path), **options)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file(tokenizer, data_file):
    with pytest.raises(FileNotFoundError, match=r"absent\.jsonl: no such file"):
        prompt_completion_dataset(tokenizer, [data_file, data_file.with_name("absent.jsonl")])
