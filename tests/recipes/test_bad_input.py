"""A mistake ends in one clear line, a non-zero exit, and an untouched output directory."""

import copy
import math
import os
import tempfile
from contextlib import suppress

import pytest
import torch
from bad_input import BAD, MODELS, OUTPUT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from kd_config.command_line import MISTAKES
from kd_training import OneDevice, prepare


@pytest.fixture
def earlier(tmp_path):
    """What an earlier run has left, which no mistake may move or change."""
    files = {"config.yaml": "seed: 1\n", "epoch_0/model.safetensors": "weights",
             "logs/metrics.jsonl": "{}\n"}  # fmt: skip
    for name, content in files.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(content)
    return {tmp_path / "out" / name: content for name, content in files.items()}


def found(folder):
    return {path: path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", BAD)
def test_one_clear_line(tune_run, config_file, tiny_run, tmp_path, earlier, case):
    overrides, words = BAD[case]
    if callable(overrides):
        overrides = overrides(tmp_path, tiny_run.directories)
    code, _, err = tune_run("kd_single_device", config_file, *overrides)
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: "), err
    assert err.count("error: ") == 1
    assert all(word in last for word in words), last
    assert "Traceback" not in err
    assert found(tmp_path / "out") == earlier


@pytest.mark.parametrize("case", MODELS | OUTPUT)
def test_a_dry_run_finds_it_without_reading_a_weight(
    tune_run, config_file, tiny_run, tmp_path, monkeypatch, case
):
    monkeypatch.setattr("kd_training.start.train", lambda _: pytest.fail("has begun to load"))
    overrides, words = BAD[case]
    if callable(overrides):
        overrides = overrides(tmp_path, tiny_run.directories)
    code, _, err = tune_run("kd_single_device", config_file, *overrides, "dry_run=true")
    assert code == 1
    assert all(word in err.strip().splitlines()[-1] for word in words), err


def test_there_are_enough_of_them():
    assert len(BAD) >= 100


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU is there")
def test_a_gpu_that_is_not_there(tune_run, config_file, tmp_path):
    """Not the CPU instead: that would be a run of months."""
    code, _, err = tune_run("kd_single_device", config_file, "device=cuda")
    assert code == 1
    assert err.strip().splitlines()[-1].startswith("error: config: device 'cuda' is not there")
    assert not (tmp_path / "out").exists()


def test_a_read_only_folder(tune_run, config_file, tmp_path, monkeypatch):
    """For root no folder is, so the system's answer is made up."""

    def refuse(*_, **__):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    code, _, err = tune_run("kd_single_device", config_file)
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: config: output_dir")
    assert "Permission denied" in last
    assert "choose another" in last
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_sample_late_in_the_data_is_named(tune_run, config_file, tmp_path, num_workers):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "fine enough"}\n' * 5 + '{"text": null}\n' + '{"text": "a b"}\n' * 2)
    changes = [f"dataset.data_files={texts}", f"num_workers={num_workers}"]
    code, _, err = tune_run("kd_single_device", config_file, *changes)
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: dataset: sample 5: "), err
    assert "check its columns" in last
    assert "worker" not in last
    assert "Traceback" not in err


def test_a_worker_that_is_killed_is_named(tune_run, config_file):
    samples = "{_component_: uneven_samples.DeadlySamples, size: 20}"
    changes = [f"dataset={samples}", "num_workers=2"]
    code, _, err = tune_run("kd_single_device", config_file, *changes)
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: num_workers: DataLoader worker"), err
    assert last.endswith("lower num_workers, or set it to 0")
    assert "Traceback" not in err


def test_a_traceback_for_those_who_ask(tune_run, config_file, monkeypatch):
    monkeypatch.setenv("KD_TRACEBACK", "1")
    with pytest.raises(ValueError, match="did you mean epochs"):
        tune_run("kd_single_device", config_file, "epcohs=3")


def test_a_directory_of_pickles_is_never_opened(tune_run, config_file, tiny_run, tmp_path):
    """Weights that would run code when unpickled: the file is refused by its name."""
    overrides, _ = BAD["pickled weights"]
    arguments = overrides(tmp_path, tiny_run.directories)
    bomb = tmp_path / "changed" / "pytorch_model.bin"
    bomb.write_bytes(b"cos\nsystem\n(S'touch " + bytes(tmp_path / "opened") + b"'\ntR.")
    assert tune_run("kd_single_device", config_file, *arguments)[0] == 1
    assert not (tmp_path / "opened").exists()


# --- random mutations

VALUES = (None, True, -1, 0, 3, 2.5, math.nan, 10**30, "text", "", [], [1], [[0, 0]], {}, {"a": 1})


def paths(node, prefix=()):
    """Every place in a nested config."""
    for key, value in node.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from paths(value, (*prefix, key))


@st.composite
def mutations(draw, config):
    """The config with one to three keys dropped, renamed, doubled or given another value."""
    config = copy.deepcopy(config)
    for _ in range(draw(st.integers(1, 3))):
        *parents, key = draw(st.sampled_from(sorted(paths(config), key=str)))
        node = config
        for parent in parents:
            node = node[parent]
        kind = draw(st.sampled_from(["drop", "rename", "retype"]))
        if kind == "retype":
            node[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        else:
            value = node.pop(key)
            if kind == "rename":
                node[draw(st.sampled_from([key[:-1], key + "s", key.upper(), "x"]))] = value
    return config


def check_mutations(config, number):
    relaxed = [HealthCheck.too_slow, HealthCheck.data_too_large]

    @settings(max_examples=number, suppress_health_check=relaxed)
    @given(mutations(config))
    def never_a_traceback(mutated):
        with suppress(*MISTAKES):
            prepare(OmegaConf.create(mutated), OneDevice("cpu"))

    never_a_traceback()


def full_config(tiny_run, root):
    """With a key of every section."""
    config = tiny_run.config(root)
    config["dataset_val"] = dict(config["dataset"])
    config["loss_scaling"]["dynamic"] = {"shares": {"ce": 1.0, "kd": 1.0, "ir": 1.0}, "ema": 0.9}
    config["lr_scheduler"] = {
        "_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup",
        "num_warmup_steps": 2,
    }
    return config | {
        "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
        "layer_projection": {"mode": "auto", "lr": 0.1},
        "token_scope": {"kd": "all", "ir": "labels"},
        "profiler": {"enabled": False},
        "metric_logger": {"_component_": "torchtune.training.metric_logging.StdoutLogger"},
        "run_val_every_n_steps": 2,
        "clip_grad_norm": 1.0,
    }


def test_random_mutations_never_end_in_a_traceback(tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a mutated path may lead
    check_mutations(full_config(tiny_run, tmp_path), number=30)


@pytest.mark.slow
def test_many_random_mutations_never_end_in_a_traceback(tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_mutations(full_config(tiny_run, tmp_path), number=500)
