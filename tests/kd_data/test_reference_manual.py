import json
import math
import re
import shutil
import sys
from pathlib import Path
from pydoc_data.topics import topics

import lm_eval
import pytest
import tiny
import torch
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from kd_data import reference_manual
from kd_data.datasets.manual_text import paragraphs, split_topics
from kd_data.reference_manual import write_reference_manual

TOPIC = """
Break statements
****************

   break_stmt ::= "break"

The "break" statement may only occur nested in a "for" or "while" loop. It ends the built-
in loop that encloses it, see **PEP 617** and the *loop control*
section. [1]

   >>> for i in range(3): print(i, "this is a doctest, not prose.")

* A bullet is one of several things that belong to a list, as *args is.

   while condition:
       break_it(condition, 1, 2, 3, 4, 5)

+----------+
| A table. |
+----------+

Too short.
"""
PROSE = [
    'The "break" statement may only occur nested in a "for" or "while" loop. It ends the built-in '
    "loop that encloses it, see PEP 617 and the loop control section.",
    "A bullet is one of several things that belong to a list, as *args is.",
]


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reference_manual(tmp_path_factory.mktemp("data") / "manual")


def rows(directory: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (directory / f"{name}.jsonl").read_text().splitlines()]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def eight_grams(texts: list[str]) -> set[tuple[str, ...]]:
    return {tuple(w[i : i + 8]) for w in map(words, texts) for i in range(len(w) - 7)}


def test_prose_is_cleaned_and_the_rest_left_out():
    assert paragraphs(TOPIC) == PROSE


def test_nothing_is_on_both_sides(manual):
    train, heldout = rows(manual, "train"), rows(manual, "heldout")
    assert not {row["topic"] for row in train} & {row["topic"] for row in heldout}
    lines = [
        {line for row in side for line in row["text"].split("\n\n")} for side in (train, heldout)
    ]
    assert not lines[0] & lines[1]
    # Nor reworded: hardly any run of eight words that is held out can be learnt by heart.
    seen, unseen = (eight_grams([row["text"] for row in side]) for side in (train, heldout))
    assert len(unseen & seen) < 0.03 * len(unseen)


def test_every_paragraph_is_kept_once(manual):
    everything = {line for text in topics.values() for line in paragraphs(text)}
    written = [
        line
        for name in ("train", "heldout")
        for row in rows(manual, name)
        for line in row["text"].split("\n\n")
    ]
    assert sorted(written) == sorted(everything)


def test_sizes(manual):
    train, heldout = rows(manual, "train"), rows(manual, "heldout")
    held_chars = sum(len(row["text"]) for row in heldout)
    assert 25_000 < held_chars < 40_000
    assert sum(len(row["text"]) for row in train) > 5 * held_chars
    assert sum(300 < len(row["text"]) < 3000 for row in train) > 0.9 * len(train)


def test_choices_have_one_true_continuation(manual):
    heldout = {}
    for row in rows(manual, "heldout"):
        heldout[row["topic"]] = heldout.get(row["topic"], "") + " " + " ".join(row["text"].split())
    questions = rows(manual, "choices")
    assert 40 <= len(questions) <= 60
    for row in questions:
        context = " ".join(row["context"].split())
        follows = [
            f"{context} {' '.join(choice.split())}" in heldout[row["topic"]]
            for choice in row["choices"]
        ]
        assert follows == [i == row["label"] for i in range(4)]
        assert len(set(row["choices"])) == 4
        lengths = [len(choice) for choice in row["choices"]]
        assert max(lengths) < 3 * min(lengths)
    labels = [row["label"] for row in questions]
    assert all(5 < labels.count(label) < 30 for label in range(4))


def test_same_rows_on_every_call(manual, tmp_path):
    again = write_reference_manual(tmp_path / "again")
    for name in ("train", "heldout", "choices"):
        assert rows(again, name) == rows(manual, name)
    assert split_topics(dict(reversed(topics.items()))) == split_topics(topics)


def test_second_call_reuses_and_repairs(manual, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in manual.rglob("*")}
    write_reference_manual(manual)
    assert {path: path.stat().st_mtime_ns for path in manual.rglob("*")} == before
    # A moved directory's tasks still point to the old place; a truncated file is incomplete.
    moved = tmp_path / "moved"
    shutil.copytree(manual, moved)
    (moved / "train.jsonl").write_text("")
    write_reference_manual(moved)
    assert rows(moved, "train") == rows(manual, "train")
    assert str(moved / "heldout.jsonl") in (moved / "tasks/manual_perplexity.yaml").read_text()


def test_foreign_files_are_left_alone(tmp_path, monkeypatch):
    (tmp_path / "thesis.txt").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["reference_manual", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="holds other files"):
        reference_manual.main()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_lm_eval_runs_both_tasks_from_anywhere(manual, tmp_path, monkeypatch):
    directory = tiny.save_model(tmp_path / "model", max_position_embeddings=2048)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    evaluated = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(directory), "dtype": "float32", "device": "cpu"},
        tasks=["manual_perplexity", "manual_choice"],
        task_manager=TaskManager(include_path=str(manual / "tasks"), include_defaults=False),
        limit=2,
        bootstrap_iters=0,
    )
    results = evaluated["results"]

    model, tokenizer = (
        cls.from_pretrained(directory) for cls in (AutoModelForCausalLM, AutoTokenizer)
    )
    log_likelihood = num_bytes = num_words = 0.0
    for row in rows(manual, "heldout")[:2]:
        tokens = torch.tensor([[tokenizer.eos_token_id, *tokenizer(row["text"]).input_ids]])
        with torch.no_grad():
            log_likelihood -= model(input_ids=tokens, labels=tokens).loss.item() * (
                tokens.shape[1] - 1
            )
        num_bytes += len(row["text"].encode())
        num_words += len(re.split(r"\s+", row["text"]))
    perplexity = results["manual_perplexity"]
    assert perplexity["byte_perplexity,none"] == pytest.approx(
        math.exp(-log_likelihood / num_bytes), rel=1e-4
    )
    assert math.log(perplexity["word_perplexity,none"]) == pytest.approx(
        -log_likelihood / num_words, rel=1e-4
    )
    assert perplexity["bits_per_byte,none"] == pytest.approx(
        -log_likelihood / num_bytes / math.log(2), rel=1e-4
    )
    samples = evaluated["samples"]["manual_choice"]
    assert [s["target"] for s in samples] == [r["label"] for r in rows(manual, "choices")[:2]]
    assert [len(s["arguments"]) for s in samples] == [4, 4]
    for metric in ("acc,none", "acc_norm,none"):
        assert results["manual_choice"][metric] in (0, 0.5, 1)
