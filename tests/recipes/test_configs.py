"""Every YAML in configs/ builds everything it names, with small stand-ins for its files."""

from pathlib import Path

import pytest
import tiny
from omegaconf import OmegaConf

from hf_models import init_student
from kd_training import OneDevice, Trainer
from kd_training.config import check_component

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
RUNS = [path for path in CONFIGS if "model" in OmegaConf.load(path)]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """As deep as the deepest layer that a config names, and of unequal widths."""
    root = tmp_path_factory.mktemp("stand_ins")
    teacher = tiny.save_model(root / "teacher", num_hidden_layers=28)
    narrow = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    student = root / "student"
    init_student(teacher, student, num_layers=4, mode="random_init", overrides=narrow)
    return {"model": student, "teacher_model": teacher}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_is_built_and_takes_a_step(path, stand_ins, tiny_run, tmp_path):
    cfg = OmegaConf.load(path)
    for node, directory in stand_ins.items():
        cfg[node].checkpoint_dir = str(directory)
    texts = tiny.run_config(tmp_path, "", "", tiny_run.texts)["dataset"]
    cfg.update(output_dir=str(tmp_path / "out"), device="cpu", dtype="fp32", batch_size=2)
    cfg.update(gradient_accumulation_steps=1, max_steps_per_epoch=1, dataset=texts)
    cfg.tokenizer.max_seq_len = 64
    if cfg.get("dataset_val"):
        cfg.dataset_val = texts
    cfg.optimizer.pop("fused", None)
    trainer = Trainer(cfg, OneDevice("cpu"))
    trainer.load()
    trainer.train()
    assert (tmp_path / "out" / "epoch_0" / "model.safetensors").exists()


def test_the_student_config_names_arguments_that_exist():
    cfg = OmegaConf.load(next(path for path in CONFIGS if path.stem == "init_student"))
    check_component(
        "init_student", OmegaConf.create({"_component_": "hf_models.init_student", **cfg})
    )
    assert len(RUNS) == len(CONFIGS) - 1, "a config that no test builds"


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_the_datasets_a_config_names_exist_in_torchtune_or_here(path):
    cfg = OmegaConf.load(path)
    for key in ("dataset", "dataset_val"):
        if cfg.get(key):
            check_component(key, cfg[key])
