"""The effective head, merging, and filling decoders: ours and torchtune's own."""

import copy

import pytest
import torch
from torchtune.models.llama3_2 import lora_llama3_2
from torchtune.models.qwen2 import lora_qwen2, qwen2
from torchtune.modules.peft import LoRALinear

from hf_models import (
    HFCheckpointer,
    decoder,
    head_weight,
    load_weights,
    lora_decoder,
    merged_state_dict,
)

ALL = ["q_proj", "k_proj", "v_proj", "output_proj"]
TORCHTUNE_SIZES = {
    "vocab_size": 61,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "embed_dim": 32,
    "intermediate_dim": 40,
    "max_seq_len": 64,
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_head_weight_is_what_the_model_applies(make_hf, load, randomize_lora, tied, lora):
    directory, _ = make_hf("qwen2", tie_word_embeddings=tied)
    if lora:
        model = load(lora_decoder, directory, ["q_proj"], False, not tied, lora_rank=3)
        randomize_lora(model)
    else:
        model = load(decoder, directory)
    hidden = torch.randn(5, 32)
    parameters = [p for p in model.parameters() if p.shape[0] == 61 or p.shape[-1] == 3]

    expected = model.output(hidden)
    wanted = torch.autograd.grad(expected.sin().sum(), parameters, allow_unused=True)
    logits = hidden @ head_weight(model).T
    got = torch.autograd.grad(logits.sin().sum(), parameters, allow_unused=True)

    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-5)
    assert any(gradient is not None for gradient in wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_head_weight_shares_memory_where_there_is_no_lora(make_hf, load):
    directory, _ = make_hf("llama", tie_word_embeddings=True)
    model = load(decoder, directory)
    assert head_weight(model) is model.tok_embeddings.weight


def test_head_weight_refuses_dropout(make_hf, load):
    directory, _ = make_hf("llama")
    model = load(lora_decoder, directory, ["q_proj"], False, True, lora_dropout=0.1)
    with pytest.raises(ValueError, match="lora_dropout must be 0"):
        head_weight(model)


@torch.no_grad()
def test_merging_leaves_the_model_as_it_was(make_hf, load, tokens, randomize_lora):
    directory, _ = make_hf("qwen3")
    model = load(lora_decoder, directory, ALL, True, True, lora_rank=3, lora_alpha=7)
    randomize_lora(model)
    before = copy.deepcopy(model.state_dict())

    merged, adapter, config = merged_state_dict(model)

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert merged.keys() | adapter.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.items())
    assert config == {
        "r": 3,
        "lora_alpha": 7,
        "lora_dropout": 0.0,
        "target_modules": sorted([*ALL, "output", "w1", "w2", "w3"]),
        "use_dora": False,
    }
    with torch.device("meta"):
        plain = decoder(directory)
    load_weights(plain, merged, "cpu", torch.float32)
    torch.testing.assert_close(plain(tokens), model(tokens), atol=5e-5, rtol=1e-4)


def test_merging_a_model_without_lora(make_hf, load):
    directory, _ = make_hf("llama")
    model = load(decoder, directory)
    merged, adapter, config = merged_state_dict(model)
    assert (adapter, config) == (None, None)
    assert merged.keys() == model.state_dict().keys()


@torch.no_grad()
def test_merging_in_bf16_rounds_once(make_hf, load, randomize_lora):
    directory, _ = make_hf("llama")
    model = load(lora_decoder, directory, ["q_proj"], lora_rank=3, lora_alpha=7).bfloat16()
    randomize_lora(model)
    merged, _, _ = merged_state_dict(model)
    layer = model.layers[0].attn.q_proj.double()
    exact = layer(torch.eye(32, dtype=torch.float64)).T
    rounded = merged["layers.0.attn.q_proj.weight"]
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, exact.bfloat16())


def test_merging_a_gathered_state(make_hf, load, randomize_lora):
    directory, _ = make_hf("llama")
    model = load(lora_decoder, directory, ["q_proj"])
    gathered = copy.deepcopy(model.state_dict())
    randomize_lora(model)  # the module's own tensors must not be looked at
    merged, _, _ = merged_state_dict(model, gathered)
    assert all(torch.equal(tensor, gathered[name]) for name, tensor in merged.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_fills_everything(make_hf, tokens, dtype):
    directory, _ = make_hf("qwen3")
    weights = HFCheckpointer(directory).load_checkpoint()["model"]
    with torch.device("meta"):
        model = lora_decoder(directory, ALL, True)
    load_weights(model, weights, "cpu", dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {"cpu"}
    assert model(tokens).isfinite().all()
    if dtype == torch.float32:  # then the file's own pages are used
        assert model.norm.scale.data_ptr() == weights["norm.scale"].data_ptr()


def test_lora_initialisation_follows_the_seed(make_hf, load):
    directory, _ = make_hf("llama")
    first, same, other = (
        (torch.manual_seed(seed), load(lora_decoder, directory, ["q_proj"]).state_dict())[1]
        for seed in (1, 1, 2)
    )
    name = "layers.2.attn.q_proj.lora_a.weight"
    assert torch.equal(first[name], same[name])
    assert not torch.equal(first[name], other[name])
    assert not first["layers.2.attn.q_proj.lora_b.weight"].any()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop("norm.scale"), "norm.scale of the model is not in the checkpoint"),
        (lambda w: w.update(extra=torch.ones(1)), "extra of the checkpoint has no place"),
        (lambda w: w.update({"norm.scale": torch.ones(3)}), r"norm.scale has shape \[3\].*\[32\]"),
    ],
)
def test_weights_that_do_not_fit(make_hf, edit, message):
    directory, _ = make_hf("llama")
    weights = HFCheckpointer(directory).load_checkpoint()["model"]
    edit(weights)
    with torch.device("meta"):
        model = lora_decoder(directory, ["q_proj"])
    with pytest.raises(ValueError, match=message):
        load_weights(model, weights, "cpu", torch.float32)


@pytest.mark.parametrize("builder", [lora_llama3_2, lora_qwen2])
@torch.no_grad()
def test_torchtunes_own_builders(tokens, builder):
    sizes = TORCHTUNE_SIZES | ({"tie_word_embeddings": True} if builder is lora_qwen2 else {})
    reference = builder(ALL, True, lora_rank=3, lora_alpha=7, **sizes).eval()
    weights = {name: t for name, t in reference.state_dict().items() if ".lora_" not in name}
    with torch.device("meta"):
        model = builder(ALL, True, lora_rank=3, lora_alpha=7, **sizes).eval()
    load_weights(model, weights, "cpu", torch.float32)
    assert any(isinstance(module, LoRALinear) for module in model.modules())
    # LoRA is the identity at first on both sides
    torch.testing.assert_close(model(tokens), reference(tokens))
    hidden = torch.randn(3, 32)
    torch.testing.assert_close(hidden @ head_weight(model).T, reference.output(hidden))


@torch.no_grad()
def test_torchtunes_qwen2_takes_the_same_weights(make_hf, tokens):
    directory, reference = make_hf("qwen2", tie_word_embeddings=True)
    weights = HFCheckpointer(directory).load_checkpoint()["model"]
    sizes = TORCHTUNE_SIZES | {"num_layers": 3, "rope_base": 10000.0, "norm_eps": 1e-6}
    with torch.device("meta"):
        model = qwen2(**sizes, tie_word_embeddings=True)
    load_weights(model, weights, "cpu", torch.float32)
    torch.testing.assert_close(model(tokens), reference(tokens).logits, atol=2e-5, rtol=1e-5)
