"""What the documentation shows can be used as it stands."""

import importlib.util
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
from kd_config.components import imported
from kd_config.describe import table

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECTION = re.compile(r"^## ", re.MULTILINE)


def blocks(text, language):
    return [content for name, content in BLOCK.findall(text) if name == language]


YAML = {
    f"{page.name}-{i}": yaml
    for page in PAGES
    if page.name != "extending.md"  # whose examples are run, files and all
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


# --- the pages themselves

LINK = re.compile(r"\]\(([^)#\s]+)?(?:#([^)\s]+))?\)")
NAME = re.compile(
    r"`((?:kd_losses|layer_mapping|hf_models|kd_data|kd_config|kd_training)(?:\.\w+)+)`"
)


def anchors(page):
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path = (page.parent / target) if target else page
        assert path.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(path), f"{page.name}: {target}#{anchor}"


def test_every_page_can_be_found_from_the_readme():
    found, new = set(), {ROOT / "README.md"}
    while new:
        page = new.pop()
        found.add(page)
        targets = {target for target, _ in LINK.findall(page.read_text(encoding="utf-8")) if target}
        new |= {(page.parent / t).resolve() for t in targets if t.endswith(".md")} - found
    assert set(PAGES) <= found


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_ours_exist(page):
    for name in NAME.findall(page.read_text(encoding="utf-8")):
        try:
            imported(name)
        except (ImportError, ValueError):
            assert importlib.util.find_spec(name) is not None, f"{page.name}: {name}"


def test_the_table_of_keys_is_the_schema():
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert table() in page, "python -m kd_config.describe prints the table of docs/config.md"


def test_a_config_of_torchtunes_own_recipe_needs_one_change():
    root = Path(importlib.util.find_spec("recipes").origin).parent / "configs"
    cfg = OmegaConf.load(root / "qwen2" / "1.5_to_0.5B_KD_lora_single_device.yaml")
    cfg.kd_loss = {"_component_": "kd_losses.ForwardKLLoss"}
    assert check_config(cfg).kd_ratio == 0.5


def test_the_completions_of_the_docs(embedded_model_dir, monkeypatch, capsys):
    (code,) = blocks((ROOT / "docs" / "models.md").read_text(encoding="utf-8"), "python")
    monkeypatch.chdir(embedded_model_dir.parents[1])
    exec(code, {})
    assert len(capsys.readouterr().out.split()) > 10
