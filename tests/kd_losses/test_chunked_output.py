"""The variants for lists of logit chunks, alone and inside torchtune's own recipe."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor
from torchtune.models.llama3_2 import llama3_2
from torchtune_parts import VOCAB_SIZE

import kd_losses

V = 17
VARIANTS = [
    ("ForwardKL", {}),
    ("ReverseKL", {"temperature": 2.0}),
    ("SymmetricKL", {"lambda_weight": 0.3}),
    ("JSDistance", {"lambda_weight": 0.6, "temperature": 0.5}),
    ("TVDistance", {"temperature": 3.0}),
]


def logits(seed: int, seq_len: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, seq_len, V, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("name", "parameters"), VARIANTS)
@pytest.mark.parametrize(("seq_len", "num_chunks"), [(11, 1), (11, 4), (8, 8), (3, 8)])
def test_chunks_give_the_same_as_the_whole(
    name: str, parameters: dict[str, float], seq_len: int, num_chunks: int
) -> None:
    chunked = getattr(kd_losses, f"{name}WithChunkedOutputLoss")(num_chunks, **parameters)
    whole = getattr(kd_losses, f"{name}Loss")(**parameters)
    student, teacher = logits(1, seq_len).requires_grad_(), logits(2, seq_len)
    labels = torch.arange(2 * seq_len).view(2, seq_len).masked_fill(student[..., 0] > 0, -100)
    expected = whole(student, teacher, labels)
    value = chunked(student.chunk(num_chunks, 1), teacher.chunk(num_chunks, 1), labels)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(value, student), torch.autograd.grad(expected, student)
    )
    total = chunked(student.chunk(num_chunks, 1), teacher.chunk(num_chunks, 1), labels, False)
    torch.testing.assert_close(total, whole(student, teacher, labels, normalize=False))


@pytest.mark.parametrize(("name", "parameters"), VARIANTS)
def test_nothing_labelled_is_zero(name: str, parameters: dict[str, float]) -> None:
    chunked = getattr(kd_losses, f"{name}WithChunkedOutputLoss")(4, ignore_index=-1, **parameters)
    student = logits(1, 9).requires_grad_()
    value = chunked(student.chunk(4, 1), logits(2, 9).chunk(4, 1), torch.full((2, 9), -1))
    value.backward()
    assert value == 0
    assert student.grad is not None
    assert not student.grad.any()


def test_chunks_that_do_not_cover_the_labels_are_refused() -> None:
    loss = kd_losses.ForwardKLWithChunkedOutputLoss(2)
    student, teacher = logits(1, 6).chunk(2, 1), logits(2, 6).chunk(3, 1)
    with pytest.raises(ValueError, match=r"\[3, 3\] and 3 teacher chunks .* length 6"):
        loss(student, teacher, torch.zeros(2, 6, dtype=torch.long))
    with pytest.raises(ValueError, match="num_output_chunks must be at least 1, got 0"):
        kd_losses.ForwardKLWithChunkedOutputLoss(0)


SIZES = {
    "vocab_size": VOCAB_SIZE,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "embed_dim": 16,
    "max_seq_len": 32,
    "intermediate_dim": 32,
}


def recipe_config(folder: Path) -> dict:
    checkpointer = {
        "_component_": "torchtune.training.FullModelTorchTuneCheckpointer",
        "checkpoint_dir": str(folder / "model"),
        "checkpoint_files": ["model.pt"],
        "output_dir": str(folder / "out"),
        "model_type": "LLAMA3_2",
    }
    lora = {
        "lora_attn_modules": ["q_proj", "v_proj"],
        "apply_lora_to_mlp": False,
        "lora_rank": 4,
        "lora_alpha": 8,
    }
    return {
        "output_dir": str(folder / "out"),
        "model": {"_component_": "torchtune.models.llama3_2.lora_llama3_2", **lora, **SIZES},
        "teacher_model": {"_component_": "torchtune.models.llama3_2.llama3_2", **SIZES},
        "tokenizer": {"_component_": "torchtune_parts.Tokenizer"},
        "dataset": {"_component_": "torchtune_parts.Samples"},
        "checkpointer": checkpointer,
        "teacher_checkpointer": checkpointer,
        "loss": {
            "_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss",
            "num_output_chunks": 4,
        },
        "kd_loss": {
            "_component_": "kd_losses.ForwardKLWithChunkedOutputLoss",
            "num_output_chunks": 4,
        },
        "kd_ratio": 0.5,
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 0.1},
        "lr_scheduler": {
            "_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup",
            "num_warmup_steps": 0,
        },
        "metric_logger": {
            "_component_": "torchtune.training.metric_logging.DiskLogger",
            "log_dir": str(folder / "logs"),
        },
        "resume_from_checkpoint": False,
        "save_adapter_weights_only": False,
        "seed": 0,
        "shuffle": False,
        "batch_size": 2,
        "epochs": 1,
        "max_steps_per_epoch": None,
        "gradient_accumulation_steps": 1,
        "clip_grad_norm": None,
        "compile": False,
        "device": "cpu",
        "dtype": "fp32",
        "enable_activation_checkpointing": False,
        "enable_activation_offloading": False,
        "log_every_n_steps": 1,
        "log_peak_memory_stats": False,
    }


def test_torchtunes_own_recipe_runs_with_ours(tmp_path: Path) -> None:
    """Student and teacher start as the same model, so the first divergence is 0 and grows."""
    torch.manual_seed(0)
    (tmp_path / "model").mkdir()
    torch.save(llama3_2(**SIZES).state_dict(), tmp_path / "model" / "model.pt")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(recipe_config(tmp_path)))
    tune = Path(sys.executable).with_name("tune")
    run = subprocess.run(
        [tune, "run", "knowledge_distillation_single_device", "--config", config],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    (log,) = (tmp_path / "logs").glob("log_*.txt")
    values = [float(x) for x in re.findall(r"kd_loss:(\S+)", log.read_text())]
    assert len(values) == 5
    assert abs(values[0]) < 1e-6
    assert all(1e-4 < value < 10 for value in values[1:])
