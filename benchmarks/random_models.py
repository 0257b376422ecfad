"""Models of any shape with random weights, and rows of random tokens: made here, not downloaded.

    python random_models.py '{"width": 256, "depth": 8, ...}' FOLDER DEVICE

writes FOLDER/teacher and FOLDER/student, in a process of its own because a GPU's memory that it
took comes back with its end.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from hf_models import init_student


@dataclass(frozen=True)
class Shape:
    """A Qwen3 teacher, and how many of its blocks the student gets."""

    width: int
    intermediate: int
    depth: int
    student_depth: int
    heads: int
    kv_heads: int
    vocab_size: int
    head_dim: int = 128
    tied: bool = True


QWEN3_8B = Shape(4096, 12288, 36, 9, 32, 8, 151936, tied=False)
SMALL = Shape(256, 768, 8, 4, 4, 2, 49152, head_dim=64)
TINY = Shape(64, 128, 4, 2, 2, 1, 1024, head_dim=32)


def save(shape: Shape, root: Path, device: str) -> list[str]:
    """The arguments of a process that writes its models."""
    return [__file__, json.dumps(asdict(shape)), str(root), device]


class RandomTokens(Dataset):
    """Rows of one length; a component of configs."""

    def __init__(self, tokenizer: Any, size: int, length: int, vocab_size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._rows = torch.randint(vocab_size, (size, length), generator=generator)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        row = self._rows[index].tolist()
        return {"tokens": row, "labels": list(row)}


def make_models(shape: Shape, root: Path, device: str) -> None:
    """A random teacher in bf16 with a tokenizer of no account, and its student."""
    config = Qwen3Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=8192,
        tie_word_embeddings=shape.tied,
    )
    teacher = root / "teacher"
    with torch.device(device):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(teacher)
    empty = Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    names = {"pad_token": "<pad>", "eos_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=empty, **names).save_pretrained(teacher)
    init_student(teacher, root / "student", num_layers=shape.student_depth)


if __name__ == "__main__":
    make_models(Shape(**json.loads(sys.argv[1])), Path(sys.argv[2]), sys.argv[3])
