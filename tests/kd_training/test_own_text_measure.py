"""What is measured of the student's own text, and what people are shown of it."""

import json

import pytest
import torch
from resuming import check_same, distil, records
from transformers import AutoModelForCausalLM

from kd_data.tasks.prompts import Prompt
from kd_training import OneDevice
from kd_training.on_policy.watch import Watch, repetition
from kd_training.on_policy.writer import Written

WRITES = {"max_new_tokens": 12, "prompt_tokens": 5}
STEPS = 20  # that are compared with one another


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_the_divergence_on_own_text_is_that_of_the_texts_one_by_one(make_run, fraction):
    own = WRITES | {"fraction": fraction, "val_prompts": 3}
    loaded = make_run({"on_policy": own, "dataset_val": "${dataset}"})
    validator = loaded.run.validator
    written = []
    inner = validator.further._completed

    def watched(batches, epoch):
        completed, texts = inner(batches, epoch)
        written.extend(texts)
        return completed, texts

    validator.further._completed = watched
    values = validator.run(loaded.run.student.module)
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(loaded.directories[who]).double().eval()
        for who in ("student", "teacher")
    )
    assert len(written) == 3
    total, count = 0.0, 0
    for one in written:
        text = torch.cat([one.prompt.tokens, one.tokens])[None]
        here = slice(len(one.prompt.tokens) - 1, -1)
        with torch.no_grad():
            log_q, log_p = (m(text).logits[0, here].log_softmax(-1) for m in (student, teacher))
        total += (log_q.exp() * (log_q - log_p)).sum().item()
        count += len(one.tokens)
    assert values["on_policy_kl"] == pytest.approx(total / count, rel=1e-5)
    assert values["on_policy_length"] == count / 3
    again = validator.run(loaded.run.student.module)
    assert again["on_policy_kl"] == values["on_policy_kl"], "the same random numbers"
    assert validator.judged_by == ("on_policy_kl" if fraction else "total")


def test_measuring_changes_nothing_else(tiny_run, tmp_path):
    runs = {}
    for name, prompts in (("measured", 4), ("not", 0)):
        own = WRITES | {"fraction": 0.5, "val_prompts": prompts}
        runs[name] = tiny_run.config(tmp_path / name) | {"on_policy": own, "epochs": 2}
        runs[name] |= {"dataset_val": "${dataset}", "run_val_every_n_steps": 1}
        assert distil(runs[name]) == 0
    measured, plain = (records(tmp_path / name / "out") for name in runs)
    extra = {"val/on_policy_kl", "val/on_policy_length"}
    assert any(extra <= step.keys() for step in measured)
    assert [{k: v for k, v in s.items() if k not in extra} for s in measured] == plain
    for name in ("measured", "not"):
        (tmp_path / name / "out" / "logs" / "metrics.jsonl").write_text("")
    check_same(tmp_path / "measured" / "out", tmp_path / "not" / "out")


def test_texts_are_shown_beside_the_data_s(make_run):
    loaded = make_run({"on_policy": WRITES | {"log_texts_every_n_steps": 2, "log_texts": 3}})
    loaded.train()
    path = loaded.run.records.directory / "logs" / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == [1] * 3 + [2] * 3
    for row in rows:
        assert row.keys() == {"step", "prompt", "completion", "data"}
        assert row["prompt"]
        assert row["completion"]


def test_texts_come_to_a_table_of_w_and_b(make_run, monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    logged = []
    logger = {
        "_component_": "torchtune.training.metric_logging.WandBLogger",
        "dir": str(tmp_path / "wandb"),
    }
    loaded = make_run({"on_policy": WRITES | {"log_texts": 2}, "metric_logger": logger})
    log = wandb.sdk.wandb_run.Run.log

    def watched(run, data, *args, **kwargs):
        logged.append(data)
        return log(run, data, *args, **kwargs)

    monkeypatch.setattr(wandb.sdk.wandb_run.Run, "log", watched)
    loaded.train()
    tables = [data["samples"] for data in logged if "samples" in data]
    assert tables
    assert tables[0].columns == ["prompt", "completion", "data"]
    assert len(tables[0].data) == 2


def test_repetition_counts_runs_that_were_there_before():
    assert repetition([1, 2, 3]) == (0, 0)
    assert repetition([1, 2, 3, 4, 5]) == (0, 2)
    assert repetition([7] * 6) == (2, 3)
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == (1, 5)


def texts(length, again=False, finished=True):
    tokens = torch.full((length,), 3) if again else torch.arange(length)
    prompt = Prompt(torch.tensor([1]), (0, 0), None, torch.tensor([2]))
    return [Written(prompt, tokens, finished)] * 2


def look(watch, steps, *args, **kwargs):
    """The warnings of so many steps with such texts."""
    found = []
    for _ in range(steps):
        watch.look(2, texts(*args, **kwargs), 1.0)
        found += watch.news().warnings
    return found


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ({"length": 41}, "texts grow"),
        ({"length": 20, "finished": False}, "ends fewer"),
        ({"length": 20, "again": True}, "repeats itself"),
    ],
)
def test_texts_that_run_away_are_told_once(kind, word):
    watch = Watch(OneDevice("cpu"), None, 100, 0)
    assert look(watch, STEPS, 20) == []
    assert look(watch, 2 * STEPS, 20) == [], "nothing has changed"
    found = look(watch, 2 * STEPS, **kind)
    assert len(found) == 1
    assert word in found[0]


def test_a_step_s_numbers_are_those_of_its_texts():
    watch = Watch(OneDevice("cpu"), None, 100, 0)
    watch.look(2, texts(10) + texts(20, again=True, finished=False), 2.0)
    values = watch.news().values
    assert values["generated_length"] == 15
    assert values["finished"] == 0.5
    assert values["repetition"] == pytest.approx(2 * 16 / (2 * 7 + 2 * 17))
    assert values["generated_per_second"] == 30
    watch.nothing_written()
    assert watch.news().values == {}


def test_it_may_be_measured_before_the_first_step(make_run):
    own = {"on_policy": WRITES, "dataset_val": "${dataset}", "run_val_at_start": True}
    loaded = make_run(own)
    first = loaded.run.validator.run(loaded.run.student.module)
    loaded.train()
    directory = loaded.run.records.directory
    steps = records(directory)
    assert steps[0] == {"step": 0, **{f"val/{name}": value for name, value in first.items()}}
    assert (directory / "best").exists()
    assert [step["step"] for step in steps if "val/total" in step] == [0, 2]
