"""A whole training step through torchtune's decoder and through transformers' own model.

    python benchmarks/model_kinds.py                                        # one GPU, a minute
    python benchmarks/model_kinds.py --device cpu --width 128 --length 128  # to see it run

A random Qwen3 teaches a LoRA student of half its depth: cross-entropy, KL and matched layers.
Prints the median tokens/s after three steps and the peak memory of each, twice, in turns.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from omegaconf import OmegaConf
from random_models import Shape, make_models

from kd_config.check import check_config
from kd_training import OneDevice, run

WARM_UP = 3
LORA = {
    "decoder": {
        "_component_": "hf_models.lora_decoder",
        "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
        "apply_lora_to_mlp": True,
    },
    "auto_model": {"_component_": "hf_models.lora_auto_model"},
}


def config_of(kind: str, root: Path, options: argparse.Namespace) -> Any:
    """A run of so many steps through one of the two builders."""
    teacher, student = str(root / "teacher"), str(root / "student")
    files = {"_component_": "hf_models.HFCheckpointer", "checkpoint_dir": student}
    model = LORA[kind] | {"checkpoint_dir": student, "lora_rank": 64, "lora_alpha": 64}
    size = options.steps * options.batch_size
    rows = {"size": size, "length": options.length, "vocab_size": options.vocab_size}
    config = {
        "output_dir": str(root / kind),
        "model": model,
        "teacher_model": {"_component_": f"hf_models.{kind}", "checkpoint_dir": teacher},
        "tokenizer": {"_component_": "hf_models.tokenizer", "checkpoint_dir": teacher},
        "checkpointer": files | {"output_dir": "${output_dir}"},
        "teacher_checkpointer": files | {"checkpoint_dir": teacher},
        "kd_loss": {"_component_": "kd_losses.ForwardKLLoss"},
        "loss_scaling": {"enabled": True, "manual_scales": {"ce": 1.0, "kd": 1.0, "ir": 3.0}},
        "layer_mapping": "forward",
        "ir_loss": {"_component_": "layer_mapping.CosineLoss"},
        "dataset": {"_component_": "random_models.RandomTokens", **rows},
        "batch_size": options.batch_size,
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-4},
        "device": options.device,
        "dtype": "bf16" if options.device == "cuda" else "fp32",
        "log_peak_memory_stats": True,
    }
    return check_config(OmegaConf.create(config))


def measure(kind: str, root: Path, options: argparse.Namespace) -> str:
    """Run it and say what its log says."""
    if options.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with mock.patch("kd_training.loop.plot_losses"):
        run(config_of(kind, root, options), OneDevice(options.device))
    lines = (root / kind / "logs" / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "tokens_per_second" in row][WARM_UP:]
    speed = statistics.median(row["tokens_per_second"] for row in rows)
    memory = max(row["peak_memory_gib"] for row in rows)
    return f"{kind}: {speed:,.0f} tokens/s, {memory:.2f} GiB"


def main() -> None:
    """Measure both in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = {"depth": 28, "width": 1024, "vocab_size": 151936, "batch_size": 8, "length": 1024,
             "steps": 12}  # fmt: skip
    for name, default in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    heads = max(options.width // 64, 1)
    shape = Shape(
        width=options.width,
        intermediate=3 * options.width,
        depth=options.depth,
        student_depth=options.depth // 2,
        heads=heads,
        kv_heads=max(heads // 2, 1),
        vocab_size=options.vocab_size,
    )
    with tempfile.TemporaryDirectory() as folder:
        make_models(shape, Path(folder), options.device)
        results = [measure(kind, Path(folder), options) for kind in [*LORA, *LORA]]
    print("\n".join(results))


if __name__ == "__main__":
    main()
