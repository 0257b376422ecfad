"""A value of the environment is in no file that a run writes, and the run's config still works."""

import json
import os

import pytest
import yaml
from omegaconf import OmegaConf

from kd_config.check import check_config

SECRET = "hf_averysecretvalue"
LOGGERS = "torchtune.training.metric_logging"


@pytest.fixture
def secret_config(config_file, tmp_path, monkeypatch):
    """Takes a token, the steps of a log and its models' folder from the environment."""
    config = yaml.safe_load(config_file.read_text())
    models = os.path.commonpath([config[key]["checkpoint_dir"] for key in ("model", "tokenizer")])
    monkeypatch.setenv("KD_TOKEN", SECRET)
    monkeypatch.setenv("KD_EVERY", "1")
    monkeypatch.setenv("KD_MODELS", models)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config["dataset"]["revision"] = "${oc.env:KD_TOKEN}"
    config["dataset_val"] = config["dataset"] | {"revision": "${dataset.revision}"}
    config["log_every_n_steps"] = "${oc.env:KD_EVERY}"
    for key in ("model", "checkpointer"):
        config[key]["checkpoint_dir"] = "${oc.env:KD_MODELS}/student"
    config["metric_logger"] = [
        {"_component_": f"{LOGGERS}.WandBLogger", "dir": "${output_dir}/logs"},
        {"_component_": f"{LOGGERS}.TensorBoardLogger", "log_dir": "${output_dir}/logs"},
        {"_component_": f"{LOGGERS}.DiskLogger", "log_dir": "${output_dir}/logs"},
    ]
    path = tmp_path / "secret.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def files_with(text, folder):
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and text.encode() in path.read_bytes()
    ]


def test_a_secret_of_the_environment_stays_there(tune_run, secret_config, tmp_path, monkeypatch):
    out = tmp_path / "out"
    code, _, err = tune_run("kd_single_device", secret_config)
    assert code == 0, err
    assert files_with(SECRET, tmp_path) == []
    told = {path.name for path in files_with("oc.env:KD_TOKEN", out)}
    assert {"config.yaml", "README.md", "torchtune_config.yaml"} <= told
    assert any(name.endswith(".wandb") for name in told), "W&B was told no config"
    for path in (out / "epoch_0").rglob("*"):
        assert path.is_dir() or os.environ["KD_MODELS"].encode() not in path.read_bytes(), path

    saved = out / "config.yaml"
    code, _, err = tune_run("kd_analyze", saved, "analysis.num_samples=2")
    assert code == 0, err
    assert (out / "analysis" / "layer_angles.json").exists()
    code, _, err = tune_run(
        "kd_single_device", saved, "resume_from_checkpoint=true", "epochs=2", "metric_logger=null"
    )
    assert code == 0, err
    lines = (out / "logs" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line)["step"] for line in lines) == 4
    assert files_with(SECRET, tmp_path) == []

    monkeypatch.delenv("KD_TOKEN")
    code, _, err = tune_run("kd_single_device", saved)
    assert code == 1
    assert "KD_TOKEN" in err.strip().splitlines()[-1]


def test_the_config_that_is_kept_is_the_config_of_the_run(tune_run, secret_config, tmp_path):
    code, _, err = tune_run("kd_single_device", secret_config, "metric_logger=null")
    assert code == 0, err
    given = OmegaConf.merge(OmegaConf.load(secret_config), {"metric_logger": None})
    kept = OmegaConf.load(tmp_path / "out" / "config.yaml")
    resolved = [OmegaConf.to_container(check_config(cfg), resolve=True) for cfg in (kept, given)]
    assert resolved[0] == resolved[1]
    assert resolved[0]["dataset_val"]["revision"] == SECRET
