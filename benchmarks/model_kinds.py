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
from tokenizers import Tokenizer, models
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from hf_models import init_student
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


class RandomTokens(Dataset):
    """Rows of one length; a component of the configs below."""

    def __init__(self, tokenizer: Any, size: int, length: int, vocab_size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._rows = torch.randint(vocab_size, (size, length), generator=generator)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        row = self._rows[index].tolist()
        return {"tokens": row, "labels": row}


def make_models(root: Path, options: argparse.Namespace) -> None:
    """A random teacher with a tokenizer of no account, and its student."""
    heads = max(options.width // 64, 1)
    config = Qwen3Config(
        vocab_size=options.vocab_size,
        hidden_size=options.width,
        intermediate_size=3 * options.width,
        num_hidden_layers=options.depth,
        num_attention_heads=heads,
        num_key_value_heads=max(heads // 2, 1),
        head_dim=128,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    with torch.device(options.device):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(root / "t")
    empty = Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=empty, pad_token="<pad>").save_pretrained(root / "t")
    init_student(root / "t", root / "s", num_layers=options.depth // 2)


def config_of(kind: str, root: Path, options: argparse.Namespace) -> Any:
    """A run of so many steps through one of the two builders."""
    files = {"_component_": "hf_models.HFCheckpointer", "checkpoint_dir": str(root / "s")}
    model = LORA[kind] | {"checkpoint_dir": str(root / "s"), "lora_rank": 64, "lora_alpha": 64}
    size = options.steps * options.batch_size
    rows = {"size": size, "length": options.length, "vocab_size": options.vocab_size}
    config = {
        "output_dir": str(root / kind),
        "model": model,
        "teacher_model": {"_component_": f"hf_models.{kind}", "checkpoint_dir": str(root / "t")},
        "tokenizer": {"_component_": "hf_models.tokenizer", "checkpoint_dir": str(root / "t")},
        "checkpointer": files | {"output_dir": "${output_dir}"},
        "teacher_checkpointer": files | {"checkpoint_dir": str(root / "t")},
        "kd_loss": {"_component_": "kd_losses.ForwardKLLoss"},
        "loss_scaling": {"enabled": True, "manual_scales": {"ce": 1.0, "kd": 1.0, "ir": 3.0}},
        "layer_mapping": "forward",
        "ir_loss": {"_component_": "layer_mapping.CosineLoss"},
        "dataset": {"_component_": "model_kinds.RandomTokens", **rows},
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
    with tempfile.TemporaryDirectory() as folder:
        make_models(Path(folder), options)
        results = [measure(kind, Path(folder), options) for kind in [*LORA, *LORA]]
    print("\n".join(results))


if __name__ == "__main__":
    main()
