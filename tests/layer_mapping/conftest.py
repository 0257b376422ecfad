from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchtune.models.llama3_1 import llama3_1, lora_llama3_1
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {
    "vocab_size": 32,
    "num_layers": 4,
    "num_heads": 2,
    "num_kv_heads": 1,
    "embed_dim": 8,
    "max_seq_len": 16,
    "intermediate_dim": 16,
}


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 32, (2, 5), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def make_decoder() -> Callable[[], nn.Module]:
    """Builds the same tiny torchtune decoder every time."""

    def make() -> nn.Module:
        torch.manual_seed(1)
        return llama3_1(**SIZES)

    return make


@pytest.fixture
def decoder(make_decoder: Callable[[], nn.Module]) -> nn.Module:
    return make_decoder()


@pytest.fixture
def lora_decoder() -> nn.Module:
    torch.manual_seed(2)
    model = lora_llama3_1(
        lora_attn_modules=["q_proj", "v_proj"],
        apply_lora_to_mlp=True,
        lora_rank=2,
        lora_alpha=4.0,
        **SIZES,
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora" in name)
        if "lora_b" in name:  # zero at first, which would hide lora_a's gradient
            nn.init.normal_(parameter)
    return model


@pytest.fixture
def hf_model() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        hidden_size=8,
        intermediate_size=16,
    )
    return LlamaForCausalLM(config)
