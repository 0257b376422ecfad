from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hf_models import HFCheckpointer, load_weights

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture
def make_hf(tmp_path: Path) -> Callable[..., tuple[Path, PreTrainedModel]]:
    """Makes a model by transformers, every parameter random, norms and biases too; saves it."""

    def make(family: str, name: str = "model", **sizes: Any) -> tuple[Path, PreTrainedModel]:
        config_class, model_class = FAMILIES[family]
        if family == "qwen3":
            sizes = {"head_dim": 8, **sizes}
        model = model_class(config_class(**{**SIZES, **sizes})).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name, model

    return make


@pytest.fixture
def load() -> Callable[..., Any]:
    """Builds with ``builder`` on the meta device and fills in the directory's weights."""

    def load(builder: Callable[..., nn.Module], directory: Path, *args: Any, **kwargs: Any) -> Any:
        with torch.device("meta"):
            model = builder(directory, *args, **kwargs)
        weights = HFCheckpointer(directory).load_checkpoint()["model"]
        load_weights(model, weights, "cpu", torch.float32)
        return model.eval()

    return load


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(
        0, SIZES["vocab_size"], (2, 50), generator=torch.Generator().manual_seed(2)
    )


@pytest.fixture
def randomize_lora() -> Callable[[nn.Module], None]:
    """LoRA starts as the identity; this makes it matter."""

    def randomize(model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    return randomize
