"""Every example of docs/extending.md, run as it stands, and seen to have been used."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from resuming import records
from transformers import AutoModelForCausalLM, AutoTokenizer

from kd_training import OneDevice, prepare, train

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.M))


def block(title, language):
    (code,) = re.findall(rf"```{language}\n(.*?)```", SECTIONS[title], re.DOTALL)
    return code


@pytest.fixture
def run_example(tiny_run, tmp_path, monkeypatch):
    """Writes a section's file, adds its YAML to a small run, and runs it."""

    def run(title, **changes):
        monkeypatch.setattr("kd_training.loop.plot_losses", lambda *_: None)
        monkeypatch.syspath_prepend(tmp_path)
        code = block(title, "python")
        (tmp_path / re.match(r"# (\w+\.py)\n", code)[1]).write_text(code)
        cfg = OmegaConf.create(tiny_run.config(tmp_path))
        cfg.update(yaml.safe_load(block(title, "yaml")))
        cfg.update({"max_steps_per_epoch": 1, "epochs": 1, "lr_scheduler": None, **changes})
        prepared = prepare(cfg, OneDevice("cpu"))
        train(prepared)
        return prepared, records(tmp_path / "out")[0]

    return run


@pytest.fixture
def first_batch(tiny_run):
    """Outputs of both models of transformers on a run's first step."""

    def outputs(prepared):
        (step,) = list(prepared.source.steps(0))[:1]
        found = []
        for who in ("student", "teacher"):
            model = AutoModelForCausalLM.from_pretrained(tiny_run.directories[who]).double()
            with torch.no_grad():
                found.append([model(b.inputs["tokens"], output_hidden_states=True) for b in step])
        return step, *found

    return outputs


def kept(step, values):
    return torch.cat([v[b.labels != -100] for b, v in zip(step, values, strict=True)])


def logits(step, outputs):
    return kept(step, [output.logits for output in outputs])


def test_a_divergence(run_example, first_batch):
    prepared, logged = run_example("A divergence")
    step, student, teacher = first_batch(prepared)
    p, q = ((logits(step, one) / 2).softmax(-1) for one in (teacher, student))
    assert logged["kd"] == pytest.approx((1 - (p * q).sqrt().sum(-1)).mean().item(), rel=1e-4)


def test_a_strategy(run_example):
    _, logged = run_example("A strategy")
    assert {key for key in logged if key.startswith("ir/")} == {"ir/s0-t1", "ir/s1-t4"}


def test_a_pair_loss(run_example, first_batch):
    prepared, logged = run_example("A pair loss", layer_mapping=[[0, 2]])
    step, student, teacher = first_batch(prepared)
    sides = (
        kept(step, [output.hidden_states[layer + 1] for output in outputs])
        for outputs, layer in ((student, 0), (teacher, 2))
    )
    a, b = (torch.nn.functional.layer_norm(side, side.shape[-1:]) for side in sides)
    huber = torch.nn.functional.smooth_l1_loss(a, b, reduction="none").mean(-1).mean()
    assert logged["ir"] == pytest.approx(huber.item(), rel=1e-4)


def test_a_term(run_example, first_batch):
    prepared, logged = run_example("A term")
    step, student, _ = first_batch(prepared)
    log_q = logits(step, student).log_softmax(-1)
    assert logged["confidence"] == pytest.approx((log_q.exp() * log_q).sum(-1).mean().item(), 1e-4)
    assert logged["weight/confidence"] == 0.1
    weighted = sum(logged[f"weight/{k}"] * logged[k] for k in ("ce", "kd", "ir", "confidence"))
    assert logged["total"] == pytest.approx(weighted, rel=1e-6)


def test_a_dataset(run_example, tiny_run):
    prepared, _ = run_example("A dataset")
    dataset = prepared.source.loader.dataset
    assert len(dataset) == 25
    words = AutoTokenizer.from_pretrained(tiny_run.directories["student"])
    sample = dataset[7]  # 2 + 3
    answer = [token for token in sample["labels"] if token != -100]
    assert words.decode(sample["tokens"]).startswith("2 + 3 = 5")
    assert words.decode(answer).startswith(" 5")


def test_every_section_has_an_example_and_a_test():
    examples = [title for title, text in SECTIONS.items() if "```python" in text]
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_a_")}
    assert {title.lower().replace(" ", "_") for title in examples} == tests
