"""Short runs that together use every feature, and the numbers that they must give.

PYTHONPATH=tests python tests/golden/golden_cases.py          records golden.json beside this file
PYTHONPATH=tests python tests/golden/golden_cases.py --check  tells which differ, bit for bit
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import tiny
import torch
from omegaconf import OmegaConf
from ranks import on_ranks
from resuming import records
from safetensors.torch import load_file

from hf_models import init_student
from kd_config.check import check_config
from kd_training import OneDevice, run
from kd_training.many_devices import make_sharded

TABLE = Path(__file__).with_name("golden.json")
STEPS = 3  # of each run
FAMILIES = ("llama", "qwen2", "qwen3")

FULL = {"model": {"_component_": "hf_models.decoder"}}
PACKED = {"dataset.packed": True, "tokenizer.max_seq_len": 128}
INT8 = "torchao.quantization.Int8WeightOnlyConfig"
HELD_OUT = {"dataset_val": "${dataset}", "run_val_every_n_steps": 1}
DYNAMIC = {"shares": {"ce": 0.5, "kd": 0.3, "ir": 0.2}, "ema": 0.9}


def loss(name: str, **arguments: Any) -> dict[str, Any]:
    """The divergence of that name."""
    return {"kd_loss": {"_component_": f"kd_losses.{name}", **arguments}}


# What differs from a plain LoRA run, by dotted key. `family` and `student` choose directories,
# `ranks` the number of processes, `stop` the step after which the run is resumed.
CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2, all weights": FULL
    | {"family": "qwen2", "ir_loss._component_": "layer_mapping.MSELoss"},
    "qwen3": {"family": "qwen3", "layer_mapping": "reverse"} | loss("JSDistanceLoss"),
    "kd_ratio, no matching": {"loss_scaling.enabled": False, "layer_mapping": "none"},
    "dora": {"model.use_dora": True},
    "qlora": {"model.quantize_base": True},
    "int8 teacher": {"teacher_quantization": {"_component_": INT8}},
    "nf4 teacher": {"teacher_quantization": "nf4"},
    "untied head with lora": {"student": "untied", "model.apply_lora_to_output": True},
    "untied head, all weights": FULL | {"student": "untied"},
    "packed": PACKED | {"batch_size": 1, "gradient_accumulation_steps": 1},
    "packed, all positions": PACKED
    | {"batch_size": 1, "gradient_accumulation_steps": 2}
    | {"token_scope": {"kd": "all", "ir": "all"}},
    "length groups": {"group_by_length": True, "batch_size": 1},
    "accumulation and clipping": {
        "batch_size": 1, "gradient_accumulation_steps": 4, "clip_grad_norm": 0.05
    },
    "projections": {"student": "narrow", "layer_projection.lr": 0.003},
    "projections everywhere": {"layer_projection.mode": "always"},
    "last layer, normalised": {
        "layer_mapping": "last",
        "ir_loss": {"_component_": "layer_mapping.NormalizedMSELoss", "layer_norm": True},
    },
    "listed pairs, summed": {
        "layer_mapping": [[0, 1], [0, 3], [-1, -1]],
        "ir_loss": {
            "_component_": "layer_mapping.CosineLoss",
            "reduction": "sum",
            "pair_weights": [1, 2, 0.5],
        },
    },
    "scope all": {"token_scope": {"kd": "all", "ir": "all"}},
    "scope all for kd": {"token_scope": {"kd": "all", "ir": "labels"}},
    "prompt_kd": {"prompts": True, "prompt_kd_loss": {"_component_": "kd_losses.ReverseKLLoss"}},
    "prompts, all positions": {"prompts": True, "token_scope": {"kd": "all", "ir": "all"}},
    "dynamic scales": {"loss_scaling.dynamic": DYNAMIC},
    "truncated teacher": {
        "loss_scaling.manual_scales": {"ce": 1, "kd": 0, "ir": 3}, "layer_mapping": [[0, 1]]
    },
    "relations": {"ir_loss": {"_component_": "layer_mapping.RelationalLoss"}},
    "workers": {"num_workers": 2},
    "labels alone": {"loss_scaling.manual_scales": {"ce": 1, "kd": 0, "ir": 0}},
    "two tokenizers": {"two_tokenizers": True, "layer_mapping": "none"} | loss("ULDLoss"),
    "checkpointed activations": FULL | {"enable_activation_checkpointing": True},
    "compiled": {"compile": True},
    "bf16": {"dtype": "bf16"},
    "bf16, all weights": FULL | {"dtype": "bf16"},
    "8-bit adam": {"optimizer._component_": "torchao.optim.AdamW8bit"},
    "validation and best": HELD_OUT,
    "two ranks": {"ranks": 2},
    "resumed": {
        "stop": 2, "model.lora_dropout": 0.2, "layer_mapping": "in_order_random", "batch_size": 1,
        "max_steps_per_epoch": 2, "epochs": 3, "loss_scaling.dynamic": DYNAMIC,
        "lr_scheduler": {
            "_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup",
            "num_warmup_steps": 2,
        },
    },
    "reverse kl, few chunks": loss("ReverseKLLoss", temperature=2.0)
    | {
        "loss": {
            "_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss", "num_output_chunks": 3
        }
    },
    "symmetric kl": loss("SymmetricKLLoss", lambda_weight=0.5),
    "tv": loss("TVDistanceLoss"),
    "skew": loss("SkewForwardKLLoss"),
    "skew reverse": loss("SkewReverseKLLoss"),
    "alpha beta": loss("AlphaBetaLoss"),
    "top k": loss("TopKKLLoss", top_k=32),
    "bild": loss("BiLDLoss"),
    "dkd": loss("DKDLoss"),
    "nkd": loss("NKDLoss"),
    "normkd": loss("NormKDLoss"),
}  # fmt: skip


def make_inputs(root: Path) -> None:
    """Models of every family and shape, and texts."""
    for family in FAMILIES:
        teacher = tiny.save_model(root / family, family, num_hidden_layers=4)
        init_student(teacher, root / f"{family}_student", num_layers=2)
    narrow = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    init_student(
        root / "llama", root / "narrow", num_layers=2, mode="random_init", overrides=narrow
    )
    untied = tiny.save_model(
        root / "untied_teacher", num_hidden_layers=4, tie_word_embeddings=False
    )
    init_student(untied, root / "untied", num_layers=2)
    tiny.save_tokenizer(root / "other", vocab_size=290, texts=tiny.SENTENCES[4:])
    tiny.save_model(root / "other_teacher", "qwen3", seed=1, vocab_size=400)
    tiny.save_tokenizer(root / "other_teacher", vocab_size=290, texts=tiny.SENTENCES[4:])
    tiny.save_texts(root / "texts.jsonl", tiny.SENTENCES * 2)
    rows = [
        {"prompt": text[: len(text) // 2], "completion": text[len(text) // 2 :]}
        for text in tiny.SENTENCES * 2
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (root / "prompts.jsonl").write_text(lines, encoding="utf-8")


def case_config(root: Path, case: str) -> dict[str, Any]:
    """The config of a case, whose output goes to ``root/runs/<case>``."""
    changes = dict(CASES[case])
    family, student = changes.pop("family", "llama"), changes.pop("student", None)
    teacher = "untied_teacher" if student == "untied" else family
    directories = root / teacher, root / (student or f"{family}_student")
    cfg = OmegaConf.create(tiny.run_config(root, *directories, root / "texts.jsonl"))
    cfg.output_dir = str(root / "runs" / case.replace(",", "").replace(" ", "_"))
    cfg.max_steps_per_epoch = STEPS
    if changes.pop("prompts", False):
        cfg.dataset = {
            "_component_": "kd_data.prompt_completion_dataset",
            "data_files": str(root / "prompts.jsonl"),
        }
    if changes.pop("two_tokenizers", False):
        cfg.tokenizer.checkpoint_dir = str(root / "llama_student")
        for key in ("teacher_model", "teacher_checkpointer"):
            cfg[key].checkpoint_dir = str(root / "other_teacher")
        cfg.teacher_tokenizer = cfg.tokenizer | {"checkpoint_dir": str(root / "other_teacher")}
    if "model" in changes:  # all weights: only the directory stays
        cfg.model = changes.pop("model") | {"checkpoint_dir": str(directories[1])}
    for key in ("ranks", "stop"):
        changes.pop(key, None)
    for key, value in changes.items():
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    return values


@contextmanager
def quickly() -> Iterator[None]:
    """No pictures; torch.compile traces, but leaves out the C++ compiler."""
    compiling = mock.patch.dict(os.environ, TORCH_COMPILE_BACKEND="aot_eager")
    with mock.patch("kd_training.loop.plot_losses"), compiling:
        yield


def run_as_rank(_: int, config: dict[str, Any]) -> None:
    """Be one of a group's processes."""
    cfg = check_config(OmegaConf.create(config))
    with quickly():
        run(cfg, make_sharded(cfg))


def run_case(root: Path, case: str) -> dict[str, Any]:
    """Run a case on inputs by `make_inputs`; what it has logged and exported, as numbers."""
    config, changes = case_config(root, case), CASES[case]
    with quickly():
        if changes.get("ranks"):
            config["batch_size"] //= changes["ranks"]
            (root / "meeting").unlink(missing_ok=True)
            on_ranks(changes["ranks"], str(root / "meeting"), run_as_rank, config)
        else:
            for epochs in sorted({changes.get("stop", config["epochs"]), config["epochs"]}):
                resumed = {"epochs": epochs, "resume_from_checkpoint": epochs > 1}
                run(OmegaConf.create(config | resumed), OneDevice("cpu"))
    output_dir = Path(config["output_dir"])
    return {"metrics": records(output_dir), "weights": _magnitudes(output_dir)}


def _magnitudes(output_dir: Path) -> dict[str, float]:
    """Σ|w| of every exported file, in float64."""
    files = sorted(output_dir.glob("**/*.safetensors"))
    exported = [path for path in files if "recipe_state" not in path.parts]
    return {
        str(path.relative_to(output_dir)): sum(
            tensor.double().abs().sum().item() for tensor in load_file(path).values()
        )
        for path in exported
    }


def main() -> None:
    """Record the table, or compare with it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of recording")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_inputs(Path(folder))
        table = {case: run_case(Path(folder), case) for case in CASES}
    if not check:
        TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        return
    recorded = json.loads(TABLE.read_text(encoding="utf-8"))
    different = [case for case in CASES if table[case] != recorded.get(case)]
    print(f"{len(different)} of {len(CASES)} runs differ: {', '.join(different) or 'none'}")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
