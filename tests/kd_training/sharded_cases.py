"""Runs that must come out the same on one device and on any number of ranks."""

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import tiny
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf
from torch.distributed.tensor import DTensor

from hf_models import Model, init_student
from kd_config.check import check_config
from kd_training import run
from kd_training.many_devices import make_sharded
from kd_training.placement.one_device import Placement, read_weights

STEPS = 5
GLOBAL_BATCH = 8  # samples of an optimizer step, whatever the number of ranks
NUM_SAMPLES = 45  # five steps, and a rest that no step takes
NUM_VAL_SAMPLES = 7  # two and four ranks do not divide it

UNTIED = {"student": "untied_student", "teacher": "untied_teacher"}
NARROW = {"student": "narrow_student"}
FULL = {"model": {"_component_": "hf_models.decoder"}}
CLIPPED_SUM = {"clip_grad_norm": 0.5, "gradient_accumulation_steps": 2}


def scales(ce: float, kd: float, ir: float) -> dict[str, Any]:
    return {"loss_scaling.manual_scales": {"ce": ce, "kd": kd, "ir": ir}}


# What differs from a plain run, by dotted key; `student` and `teacher` choose a directory.
CASES: dict[str, dict[str, Any]] = {
    "lora": {"save_every_n_steps": 1, "keep_last_n": 9},
    "accumulation": {"gradient_accumulation_steps": 2},
    "grouped by length": {"gradient_accumulation_steps": 2, "group_by_length": True},
    "clipping": {"clip_grad_norm": 0.05},
    "projections": NARROW | CLIPPED_SUM,
    "untied head": UNTIED,
    "lora on the head": UNTIED | {"model.apply_lora_to_output": True},
    "dora on the head": UNTIED | {"model.apply_lora_to_output": True, "model.use_dora": True},
    "all weights": FULL,
    "all weights, untied head": UNTIED | FULL,
    "odd ranks without labels": FULL | CLIPPED_SUM | {"dataset.odd_silent": True},
    "activation checkpointing": FULL | {"enable_activation_checkpointing": True},
    "scope all": {"token_scope": {"kd": "all", "ir": "all"}},
    "prompt_kd_loss": {"prompt_kd_loss": {"_component_": "kd_losses.ReverseKLLoss"}},
    "truncated teacher": scales(1, 0, 3) | {"layer_mapping": [[0, 1], [1, 3]]},
    "layers alone": scales(0, 0, 1) | {"layer_mapping": [[0, 1]]},
    "no teacher": scales(1, 0, 0),
    "agreement": scales(1, 0, 0) | {"log_agreement": True},
    "in_order_random": {"layer_mapping": "in_order_random", "epochs": 3, "max_steps_per_epoch": 2},
    "dynamic scales": {
        "loss_scaling.dynamic": {"shares": {"ce": 0.5, "kd": 0.3, "ir": 0.2}, "ema": 0.9}
    },
    "validation": {"dataset_val": {"size": NUM_VAL_SAMPLES}, "run_val_every_n_steps": 2},
    "gathered once": FULL | {"fsdp_reshard_after_forward": False},
    "own embeddings": UNTIED | FULL | {"custom_sharded_layers": ["tok_embeddings"]},
    "own tied embeddings": FULL | {"custom_sharded_layers": ["tok_embeddings"]},
    "whole teacher": {"teacher_sharding": "none"},
    "two replicas": NARROW | CLIPPED_SUM | {"data_parallel_replicate_dim": 2},
    "cpu offload": NARROW | CLIPPED_SUM | {"fsdp_cpu_offload": True},
    "bf16": {"dtype": "bf16"},
    "bf16, all weights": FULL | {"dtype": "bf16"},
    "bf16, DoRA and projections": NARROW | {"dtype": "bf16", "model.use_dora": True},
    "compile": {"compile": True},
}
# Runs that end with an error on every rank, or are told to go on after it.
SPOILT = {
    "spoilt": {"ir_loss._component_": "uneven_samples.SpoiltCosineLoss"},
    "spoilt, skipped": {
        "ir_loss._component_": "uneven_samples.SpoiltCosineLoss",
        "skip_nonfinite_steps": 1,
    },
    "no room": CASES["validation"]
    | {"checkpointer._component_": "full_checkpointer.FullCheckpointer"},
}


def make_models(root: Path) -> None:
    """Teachers and students with tied and untied heads, and a student of another width."""
    for tie, prefix in ((True, ""), (False, "untied_")):
        teacher = tiny.save_model(
            root / f"{prefix}teacher", num_hidden_layers=4, tie_word_embeddings=tie
        )
        init_student(teacher, root / f"{prefix}student", num_layers=2)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    narrow = root / "narrow_student"
    init_student(root / "teacher", narrow, num_layers=2, mode="random_init", overrides=sizes)


def run_directory(root: Path, case: str, ranks: int) -> Path:
    """Where a case's run goes; 0 ranks: on one device without a process group."""
    return root / f"ranks_{ranks}" / case.replace(",", "").replace(" ", "_")


def case_config(root: Path, case: str, ranks: int) -> DictConfig:
    """The config of a case, with the same global batch for every number of ranks."""
    overrides = (CASES | SPOILT)[case]
    teacher, student = (root / overrides.get(k, k) for k in ("teacher", "student"))
    cfg = OmegaConf.create(tiny.run_config(root, teacher, student, Path()))
    samples = {"_component_": "uneven_samples.UnevenSamples", "size": NUM_SAMPLES}
    cfg.update(output_dir=str(run_directory(root, case, ranks)), max_steps_per_epoch=STEPS)
    cfg.update(dataset=samples, shuffle="dataset.odd_silent" not in overrides)
    cfg.gradient_accumulation_steps = 1
    for key, value in overrides.items():
        if key not in ("teacher", "student"):
            OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    cfg.model.checkpoint_dir = str(student)
    if "dataset_val" in cfg:
        cfg.dataset_val = samples | cfg.dataset_val
    cfg.batch_size = GLOBAL_BATCH // cfg.gradient_accumulation_steps // max(ranks, 1)
    return cfg


def train(cfg: DictConfig, placement: Placement) -> None:
    """Run on a placement; the loss curves, most of the time here, are not drawn."""
    # Inductor would compile C++ for minutes; what it shares with this backend is what can differ.
    compiling = mock.patch.dict(os.environ, TORCH_COMPILE_BACKEND="aot_eager")
    with mock.patch("kd_training.loop.plot_losses"), compiling:
        run(cfg, placement)


def train_sharded(root: Path, case: str) -> None:
    """Run a case on the process group's ranks, and note what happened on this one."""
    cfg = check_config(case_config(root, case, dist.get_world_size()))
    placement, notes = make_sharded(cfg), {"on_meta": [], "share": []}
    place = placement.place

    def place_and_note(model: Model, *args: Any) -> None:
        notes["on_meta"].append(all(p.is_meta for p in model.module.parameters()))
        place(model, *args)
        held = list(model.module.parameters())
        local = sum(p.to_local().numel() for p in held if isinstance(p, DTensor))
        notes["share"].append(local / sum(p.numel() for p in held))

    placement.place = place_and_note
    with mock.patch("kd_training.placement.sharded.read_weights", wraps=read_weights) as reads:
        try:
            train(cfg, placement)
        except (FloatingPointError, OSError) as err:
            notes["error"] = str(err)
    notes["reads"] = reads.call_count
    path = run_directory(root, case, placement.world_size) / f"rank_{placement.rank}.json"
    path.write_text(json.dumps(notes))


def train_cases(_: int, root: Path, cases: tuple[str, ...]) -> None:
    """Run all cases as one of a group's ranks."""
    for case in cases:
        train_sharded(root, case)
