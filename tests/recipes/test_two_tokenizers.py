"""A teacher whose tokenizer is not the student's, through the recipe."""

import json
import re
import shutil

import numpy as np
import pytest
import tiny
import torch
import yaml
from resuming import records
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_models import init_student

ULD = {"_component_": "kd_losses.ULDLoss"}


@pytest.fixture
def config(tmp_path):
    """The whole data set in one step; student and teacher have other ids and other numbers of."""
    student_of = tiny.save_model(tmp_path / "student_of", num_hidden_layers=3)
    student = init_student(student_of, tmp_path / "student", num_layers=2)
    teacher = tiny.save_model(tmp_path / "teacher", "qwen3", seed=1, vocab_size=2000)
    tiny.save_tokenizer(teacher, vocab_size=290, texts=tiny.SENTENCES[4:])
    texts = tiny.save_texts(tmp_path / "texts.jsonl")
    config = tiny.run_config(tmp_path, teacher, student, texts)
    config["tokenizer"] |= {"checkpoint_dir": str(student), "max_seq_len": 30}
    config["teacher_tokenizer"] = config["tokenizer"] | {"checkpoint_dir": str(teacher)}
    return config | {
        "layer_mapping": "none",
        "kd_loss": ULD,
        "batch_size": 4,
        "gradient_accumulation_steps": 2,
        "epochs": 3,
        "dataset_val": config["dataset"],
    }


def run(tune_run, config, tmp_path, *overrides):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return tune_run("kd_single_device", path, *overrides)


def targets(directory, text, length):
    """End in the text → the descending distribution [V] of what ends there, by transformers alone.

    The sentences have no characters of several bytes, so each token ends with one. The end token
    ends behind the text.
    """
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    encoding = tokenizer(text, return_offsets_mapping=True)
    ids = [*encoding["input_ids"], tokenizer.eos_token_id][:length]
    ends = [*(end for _, end in encoding["offset_mapping"]), len(text) + 1][1:length]
    with torch.no_grad():
        p = model(torch.tensor([ids])).logits[0, :-1].softmax(-1).numpy()
    return dict(zip(ends, -np.sort(-p, axis=-1), strict=True))


def uld(teacher, student):
    """The sum over the targets of both that end together, and their number."""
    common = teacher.keys() & student.keys()
    p, q = (np.array([side[end] for end in sorted(common)]) for side in (teacher, student))
    width = max(p.shape[1], q.shape[1])
    p, q = (np.pad(x, [(0, 0), (0, width - x.shape[1])]) for x in (p, q))
    return np.abs(p - q).sum(), len(common)


def test_the_divergence_is_transformers(tune_run, config, tmp_path):
    code, out, err = run(tune_run, config, tmp_path)
    assert code == 0, err
    logged = records(tmp_path / "out")
    student, teacher = config["tokenizer"], config["teacher_tokenizer"]
    sums, own = [], 0
    for text in tiny.SENTENCES:
        # torchtune leaves room for one token more than its dataset needs.
        sides = [targets(side["checkpoint_dir"], text, 29) for side in (teacher, student)]
        assert sides[0].keys() != sides[1].keys()
        sums.append(uld(*sides))
        own += len(sides[1])
    total, number = map(sum, zip(*sums, strict=True))
    assert logged[0]["kd"] == pytest.approx(total / number, rel=1e-5)
    assert logged[-1]["val/kd"] < logged[0]["kd"]
    assert f"targets paired with the teacher's: {number / own:.0%} " in out + err
    assert json.loads((tmp_path / "out/epoch_2/config.json").read_text())["num_hidden_layers"] == 2


def lower_case(directory, tmp_path):
    """A copy of a tokenizer that knows no capitals: its texts are others than the student's."""
    shutil.copytree(directory, tmp_path / "lower")
    file = tmp_path / "lower" / "tokenizer.json"
    content = json.loads(file.read_text()) | {"normalizer": {"type": "Lowercase"}}
    file.write_text(json.dumps(content))
    return str(tmp_path / "lower")


@pytest.mark.parametrize("dry_run", ["true", "false"])
def test_texts_that_never_meet_are_refused(tune_run, config, tmp_path, dry_run):
    config["teacher_tokenizer"]["checkpoint_dir"] = lower_case(
        config["teacher_tokenizer"]["checkpoint_dir"], tmp_path
    )
    code, _, err = run(tune_run, config, tmp_path, f"dry_run={dry_run}")
    assert code != 0
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert re.search(r"dataset: only 0.0% of the targets .* teacher_tokenizer", last), last
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher_tokenizer": None}, "ids differ .* teacher_tokenizer"),
        ({"kd_loss": {"_component_": "kd_losses.ForwardKLLoss"}}, "kd_loss.*kd_losses.ULDLoss"),
        ({"log_agreement": True}, "log_agreement compares token by token"),
        (
            {"terms": {"ahead": {"_component_": "own_terms.MarginAhead"}}},
            "terms.ahead compares token by token",
        ),
        ({"layer_mapping": "forward"}, "layer_mapping must be none .* end at the same character"),
        ({"token_scope": {"kd": "all"}}, "token_scope.kd must be labels"),
        ({"prompt_kd_loss": ULD}, "prompt_kd_loss must be null"),
        ({"teacher_tokenizer": {"_component_": "hf_models.tokeniser"}}, "teacher_tokenizer"),
    ],
)
def test_what_does_not_go_together_is_refused(tune_run, config, tmp_path, changes, words):
    code, _, err = run(tune_run, config | changes, tmp_path)
    assert code != 0
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert re.search(words, last), last


def test_there_is_no_analysis_token_by_token(tune_run, config, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    code, _, err = tune_run("kd_analyze", path)
    assert code != 0
    assert "config: teacher_tokenizer" in err.strip().splitlines()[-1]


def test_packed_samples_are_refused(tune_run, config, tmp_path):
    config["dataset"]["packed"] = True
    code, _, err = run(tune_run, config, tmp_path)
    assert code != 0
    assert "dataset.packed must be false" in err.strip().splitlines()[-1]
