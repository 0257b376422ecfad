"""What loggers are told of a config."""

import pytest
from omegaconf import OmegaConf
from torchtune.training.metric_logging import save_config

from kd_config.public import environment_unresolved, from_environment, log_config


class Resolving:
    """What torchtune's loggers for W&B, Comet and MLflow do with a config."""

    def log_config(self, config):
        self.told = OmegaConf.to_container(config, resolve=True)
        self.file = save_config(config)


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_OUT", str(tmp_path / "out"))
    monkeypatch.setenv("KD_TOKEN", "hf_averysecretvalue")
    monkeypatch.setenv("KD_EPOCHS", "3")
    values = {
        "output_dir": "${oc.env:KD_OUT}/run",
        "epochs": "${oc.env:KD_EPOCHS}",
        "batch_size": 2,
        "gradient_accumulation_steps": "${batch_size}",
        "model": {"token": "${oc.env:KD_TOKEN}"},
        "tokenizer": [{"deep": "${model.token}"}, "${oc.decode:${oc.env:KD_TOKEN}}"],
        "dataset": {"default": "${oc.env:KD_NOTHING,null}", "log": "${output_dir}/logs"},
    }
    return OmegaConf.create(values)


def test_loggers_are_told_all_but_the_environment(cfg, tmp_path):
    logger = Resolving()
    log_config(logger, cfg)
    assert logger.told["output_dir"] == "${oc.env:KD_OUT}/run"
    assert logger.told["epochs"] == "${oc.env:KD_EPOCHS}"
    assert logger.told["gradient_accumulation_steps"] == 2
    assert logger.told["tokenizer"] == [{"deep": "${oc.env:KD_TOKEN}"}, "${oc.env:KD_TOKEN}"]
    assert logger.told["dataset"]["default"] == "${oc.env:KD_NOTHING,null}"
    assert logger.told["dataset"]["log"] == "${oc.env:KD_OUT}/run/logs"
    # The copy lies where the run does, and is a config like the run's own.
    assert logger.file == tmp_path / "out" / "run" / "torchtune_config.yaml"
    assert "secret" not in logger.file.read_text()
    copy = OmegaConf.load(logger.file)
    assert OmegaConf.to_container(copy, resolve=True) == OmegaConf.to_container(cfg, resolve=True)


def test_the_environment_is_back_even_after_an_error(cfg):
    with pytest.raises(RuntimeError, match="full"), environment_unresolved():
        raise RuntimeError("full")
    assert cfg.model.token == "hf_averysecretvalue"
    assert cfg.epochs == "3"


def test_what_comes_from_the_environment(cfg):
    assert from_environment(cfg, "dataset.log")
    assert from_environment(cfg, "model.token")
    assert not from_environment(cfg, "gradient_accumulation_steps")
    assert not from_environment(cfg, "teacher_checkpointer.checkpoint_dir")
