"""Runs that are interrupted, and how to tell whether nothing was lost."""

import json
from pathlib import Path

import tiny
from omegaconf import OmegaConf

from hf_models import init_student
from kd_training import OneDevice, run

SCHEDULE = "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup"
# Measured with a clock, so never the same twice.
TIMED = ("tokens_per_second", "peak_memory_gib", "generated_per_second", "generation_seconds",
         "trained_per_second")  # fmt: skip
NUM_STEPS = 12


def everything(root: Path, teacher: Path) -> dict:
    """A run of three epochs of four steps in which all that a checkpoint must keep matters.

    Its output goes to ``root/out``.
    """
    narrow = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    student = root / "narrow"
    init_student(teacher, student, num_layers=2, mode="random_init", seed=5, overrides=narrow)
    texts = tiny.save_texts(root / "texts.jsonl")
    config = tiny.run_config(root, teacher, student, texts)
    config["model"]["lora_dropout"] = 0.2
    held_out = tiny.save_texts(root / "held_out.jsonl", tiny.SENTENCES[:3])
    return config | {
        "batch_size": 1,
        "epochs": 3,
        "lr_scheduler": {"_component_": SCHEDULE, "num_warmup_steps": 2},
        "layer_mapping": "in_order_random",
        "layer_projection": {"mode": "auto", "lr": 0.003},
        "loss_scaling": {
            "enabled": True,
            "dynamic": {"shares": {"ce": 0.5, "kd": 0.3, "ir": 0.2}, "ema": 0.9},
        },
        "kd_loss": {"_component_": "faulty_parts.FaultyLoss"},
        "clip_grad_norm": 1.0,
        "dataset_val": config["dataset"] | {"data_files": str(held_out)},
        "run_val_every_n_steps": 3,
    }


def distil(config: dict, **changes: object) -> int:
    """Run here; changes are by dotted key, with ``__`` for the dot. Returns the exit code."""
    cfg = OmegaConf.create(config)
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    try:
        run(cfg, OneDevice("cpu"))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def records(output_dir: Path) -> list[dict]:
    """What the run has logged, without times."""
    lines = (output_dir / "logs" / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in lines]


def students(output_dir: Path) -> dict[str, bytes]:
    """The bytes of all weights that the run has exported, adapters included."""
    files = sorted([*output_dir.glob("epoch_*/**/*.safetensors"),
                    *output_dir.glob("best/**/*.safetensors")])  # fmt: skip
    return {str(path.relative_to(output_dir)): path.read_bytes() for path in files}


def checkpoints(output_dir: Path) -> list[int]:
    """The steps whose state is kept."""
    folders = (output_dir / "recipe_state").glob("step_*")
    return sorted(int(path.name.removeprefix("step_")) for path in folders)


def check_same(output_dir: Path, expected: Path) -> None:
    """Every metric and every weight is the same, bit for bit."""
    assert records(output_dir) == records(expected)
    ours, theirs = students(output_dir), students(expected)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if ours[name] != theirs[name]]
    assert not different
