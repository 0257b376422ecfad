"""torchtune's own dataset builders with our tokenizer, on local files."""

import json
from functools import partial

import pytest
import torch
from torchtune.datasets import (
    alpaca_cleaned_dataset,
    chat_dataset,
    instruct_dataset,
    text_completion_dataset,
)
from transformers import AutoTokenizer

from hf_models import HFTokenizer
from kd_data import collate

IGNORE = -100
ALPACA = [
    {"instruction": "Name a loop.", "input": "", "output": "A for loop."},
    {"instruction": "Count the words.", "input": "one two", "output": "2"},
]
ALPACA_PROMPTS = [
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\nName a loop.\n\n### Response:\n",
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nCount the words.\n\n### Input:\none two\n\n### Response:\n",
]
SHAREGPT = [
    {
        "conversations": [
            {"from": "system", "value": "Be short."},
            {"from": "human", "value": "What is a name?"},
            {"from": "gpt", "value": "A binding."},
            {"from": "human", "value": "And a loop?"},
            {"from": "gpt", "value": "A repetition."},
        ]
    }
]


@pytest.fixture
def build(tmp_path, tokenizer_dir):
    """The builder's dataset of some rows."""

    def build(builder, rows, **options):
        file = tmp_path / "rows.json"
        file.write_text(json.dumps(rows))
        tokenizer = HFTokenizer(tokenizer_dir, max_seq_len=1000)
        return builder(tokenizer, source="json", data_files=str(file), **options)

    return build


def rendered(tokenizer_dir, *turns):
    """What transformers makes of a conversation."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    chat = [{"role": role, "content": content} for role, content in turns]
    return tokenizer.apply_chat_template(chat)["input_ids"]


def labelled(tokenizer_dir, sample):
    """The text of the labels, which are the tokens of their own positions."""
    pairs = list(zip(sample["tokens"], sample["labels"], strict=True))
    assert all(label in (IGNORE, token) for token, label in pairs)
    return HFTokenizer(tokenizer_dir).decode([int(label) for _, label in pairs if label != IGNORE])


@pytest.mark.parametrize("train_on_input", [False, True])
def test_alpaca_cleaned(build, tokenizer_dir, train_on_input):
    dataset = build(alpaca_cleaned_dataset, ALPACA, train_on_input=train_on_input)
    assert len(dataset) == len(ALPACA)
    for row, prompt, sample in zip(ALPACA, ALPACA_PROMPTS, dataset, strict=True):
        turns = [("user", prompt), ("assistant", row["output"])]
        assert sample["tokens"] == rendered(tokenizer_dir, *turns)
        answer = f"{row['output']}<|im_end|>"
        question = f"{prompt}<|im_end|>" if train_on_input else ""
        # Between the two stands the template's own text, which nobody is to learn.
        assert labelled(tokenizer_dir, sample) == question + answer


def test_instruct(build, tokenizer_dir):
    columns = {"input": "instruction", "output": "output"}
    options = {"column_map": columns, "new_system_prompt": "Be short."}
    sample = build(instruct_dataset, ALPACA, **options)[0]
    turns = [("system", "Be short."), ("user", "Name a loop."), ("assistant", "A for loop.")]
    assert sample["tokens"] == rendered(tokenizer_dir, *turns)
    assert labelled(tokenizer_dir, sample) == "A for loop.<|im_end|>"


def test_chat(build, tokenizer_dir):
    options = {"conversation_column": "conversations", "conversation_style": "sharegpt"}
    sample = build(chat_dataset, SHAREGPT, **options)[0]
    roles = {"system": "system", "human": "user", "gpt": "assistant"}
    turns = [(roles[m["from"]], m["value"]) for m in SHAREGPT[0]["conversations"]]
    assert sample["tokens"] == rendered(tokenizer_dir, *turns)
    assert labelled(tokenizer_dir, sample) == "A binding.<|im_end|>A repetition.<|im_end|>"


def test_text_completion(build, tokenizer_dir):
    sample = build(text_completion_dataset, ALPACA, column="output")[0]
    assert labelled(tokenizer_dir, sample) == "A for loop.<|im_end|>"
    assert sample["tokens"] == sample["labels"]


@pytest.mark.parametrize(
    ("builder", "rows"),
    [
        (alpaca_cleaned_dataset, ALPACA),
        (
            partial(instruct_dataset, column_map={"input": "instruction", "output": "output"}),
            ALPACA,
        ),
        (
            partial(
                chat_dataset, conversation_column="conversations", conversation_style="sharegpt"
            ),
            SHAREGPT * 2,
        ),
        (partial(text_completion_dataset, column="output"), ALPACA),
    ],
    ids=["alpaca_cleaned", "instruct", "chat", "text"],
)
def test_packed_documents_keep_their_targets(build, builder, rows):
    plain = collate([build(builder, rows)[i] for i in range(2)], pad_id=0)
    packed = collate(list(build(builder, rows, packed=True)), pad_id=0)
    assert packed.inputs["tokens"].shape == (1, 1000)
    (ours, valid), (theirs, theirs_valid) = (
        ((batch.inputs["tokens"], batch.labels), batch.scopes["all"]["logits"])
        for batch in (packed, plain)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert one[valid].tolist() == other[theirs_valid].tolist()
    assert (packed.labels[~valid] == IGNORE).all()
    assert torch.equal(packed.sample_keys, plain.sample_keys)
