"""What the documentation shows can be used as it stands."""

import json
import re
from pathlib import Path

import pytest
import tiny
from omegaconf import OmegaConf
from torchtune.config import instantiate
from transformers import AutoTokenizer

from hf_models import HFTokenizer
from kd_config.check import check_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECTION = re.compile(r"^## ", re.MULTILINE)


def blocks(text, language):
    return [content for name, content in BLOCK.findall(text) if name == language]


YAML = {
    f"{page.name}-{i}": yaml
    for page in PAGES
    for i, yaml in enumerate(blocks(page.read_text(encoding="utf-8"), "yaml"))
}


@pytest.mark.parametrize("name", YAML)
def test_every_piece_of_a_config_is_one(name, tmp_path):
    """Put into a run's config, its keys, components and arguments pass the check of any run."""
    config = tiny.run_config(tmp_path, tmp_path, tmp_path, tmp_path / "texts.jsonl")
    check_config(OmegaConf.create(config | OmegaConf.to_container(OmegaConf.create(YAML[name]))))


def test_there_are_some():
    assert {name.partition("-")[0] for name in YAML} >= {"README.md", "data.md"}


def section(page, title):
    parts = SECTION.split((ROOT / "docs" / page).read_text(encoding="utf-8"))
    return next(part for part in parts if part.startswith(title))


@pytest.fixture
def tokenizer_dir(tmp_path):
    tiny.save_tokenizer(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def build(tmp_path, tokenizer_dir, monkeypatch):
    """The dataset of a YAML, and the rows of a file, in the folder that the YAML's paths mean."""
    monkeypatch.chdir(tmp_path)

    def build(yaml, rows, **changes):
        node = OmegaConf.create(yaml).dataset
        node.update(changes)
        files = node.data_files if not isinstance(node.data_files, str) else [node.data_files]
        for file in files:
            Path(file).write_text(rows, encoding="utf-8")
        return instantiate(node, HFTokenizer(tokenizer_dir))

    return build


def labels_of(dataset, tokenizer_dir, index):
    kept = [int(label) for label in dataset[index]["labels"] if label != -100]
    return HFTokenizer(tokenizer_dir).decode(kept)


def test_the_conversations_of_the_docs(build, tokenizer_dir):
    text = section("data.md", "Your own conversations")
    ((yaml,), (sharegpt, openai)) = blocks(text, "yaml"), blocks(text, "json")
    rows = [json.loads(line)["conversations"] for line in sharegpt.splitlines()]
    roles = {"system": "system", "human": "user", "gpt": "assistant"}
    chats = [[{"role": roles[t["from"]], "content": t["value"]} for t in row] for row in rows]
    reference = AutoTokenizer.from_pretrained(tokenizer_dir)

    dataset = build(yaml, sharegpt)
    assert len(dataset) == len(rows) == 2
    for i, chat in enumerate(chats):
        assert dataset[i]["tokens"] == reference.apply_chat_template(chat)["input_ids"]
        answers = [turn["content"] for turn in chat if turn["role"] == "assistant"]
        assert labels_of(dataset, tokenizer_dir, i) == "".join(f"{a}<|im_end|>" for a in answers)

    trained = build(yaml, sharegpt, train_on_input=True)
    everything = "".join(f"{turn['content']}<|im_end|>" for turn in chats[0])
    assert labels_of(trained, tokenizer_dir, 0) == everything

    style = {"conversation_style": "openai", "conversation_column": "messages"}
    same = build(yaml, openai, **style)
    assert len(same) == 1
    assert [same[0][k] for k in ("tokens", "labels")] == [
        dataset[1][k] for k in ("tokens", "labels")
    ]

    replaced = build(yaml, sharegpt, new_system_prompt="Be long.")
    chat = [{"role": "system", "content": "Be long."}, *chats[0][1:]]
    assert replaced[0]["tokens"] == reference.apply_chat_template(chat)["input_ids"]


@pytest.mark.parametrize(
    "turns", [["human", "human", "gpt"], ["gpt", "human"], ["human", "system", "gpt"]]
)
def test_conversations_that_the_docs_exclude(build, turns):
    yaml = blocks(section("data.md", "Your own conversations"), "yaml")[0]
    row = {"conversations": [{"from": turn, "value": "a"} for turn in turns]}
    with pytest.raises(ValueError, match="at index"):
        build(yaml, json.dumps(row))[0]


def test_the_prompts_and_completions_of_the_docs(build, tokenizer_dir):
    yaml = blocks(section("data.md", "Your own prompts and completions"), "yaml")[0]
    dataset = build(yaml, 'question,answer\n"What is 007, then?", A name.\n1 + 1 =, 2\n')
    assert len(dataset) == 4
    assert labels_of(dataset, tokenizer_dir, 0) == " A name.<|im_end|>"
    assert HFTokenizer(tokenizer_dir).decode(dataset[3]["tokens"]) == "1 + 1 = 2<|im_end|>"
