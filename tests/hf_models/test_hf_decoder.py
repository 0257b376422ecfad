"""Decoders against transformers' own models."""

import json

import pytest
import torch
from omegaconf import OmegaConf
from torchtune import config
from torchtune.modules import TransformerDecoder
from torchtune.modules.peft import LoRALinear

from hf_models import decoder, lora_decoder, read_config

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}

CASES = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-no-gqa": ("llama", {"num_key_value_heads": 4}),
    "llama-one-kv-head": ("llama", {"num_key_value_heads": 1}),
    "llama-bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": ("llama", {"head_dim": 12}),
    "llama-eps": ("llama", {"rms_norm_eps": 0.1}),
    "llama-rope-llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama-rope-linear": ("llama", {"rope_parameters": LINEAR}),
    "llama-rope-yarn": ("llama", {"rope_parameters": YARN}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-head-dim": ("qwen2", {"head_dim": 12}),
    "qwen2-indivisible-width": ("qwen2", {"hidden_size": 34}),
    "qwen2-rope-yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {}),
    "qwen3-tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3-head-dim": ("qwen3", {"head_dim": 12}),
    "qwen3-indivisible-width": ("qwen3", {"hidden_size": 30}),
    "qwen3-bias": ("qwen3", {"attention_bias": True}),
    "qwen3-rope-linear": ("qwen3", {"rope_parameters": LINEAR}),
    "qwen3-deep": ("qwen3", {"num_hidden_layers": 7}),
}


@pytest.fixture
def close():
    return lambda a, b: torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "sizes"), CASES.values(), ids=CASES)
@torch.no_grad()
def test_logits_and_layer_outputs_equal_transformers(make_hf, load, tokens, close, family, sizes):
    directory, reference = make_hf(family, **sizes)
    model = load(decoder, directory)
    outputs = []
    for layer in model.layers:
        layer.register_forward_hook(lambda module, args, out: outputs.append(out))

    logits = model(tokens)

    expected = reference(tokens, output_hidden_states=True)
    close(logits, expected.logits)
    assert isinstance(model, TransformerDecoder)
    assert len(outputs) == reference.config.num_hidden_layers
    for out, hidden in zip(outputs[:-1], expected.hidden_states[1:-1], strict=True):
        close(out, hidden)
    # transformers' last entry has the final norm applied, a layer's output has not
    close(model.norm(outputs[-1]), expected.hidden_states[-1])


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@torch.no_grad()
def test_gradients_equal_transformers(make_hf, load, tokens, family):
    directory, reference = make_hf(family, tie_word_embeddings=True)
    model = load(decoder, directory)
    with torch.enable_grad():
        model(tokens).square().mean().backward()
        reference(tokens).logits.square().mean().backward()
    expected = reference.model.embed_tokens.weight.grad
    torch.testing.assert_close(model.tok_embeddings.weight.grad, expected, atol=1e-4, rtol=1e-4)
    expected = reference.model.layers[0].self_attn.k_proj.weight.grad
    torch.testing.assert_close(
        model.layers[0].attn.k_proj.weight.grad, expected, atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_rope_fields_of_older_configs(make_hf, load, tokens, close):
    directory, reference = make_hf("llama", rope_parameters=LLAMA3)
    path = directory / "config.json"
    raw = json.loads(path.read_text())
    rope = raw.pop("rope_parameters")
    raw["rope_theta"] = rope.pop("rope_theta")
    raw["rope_scaling"] = rope
    path.write_text(json.dumps(raw))
    close(load(decoder, directory)(tokens), reference(tokens).logits)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@torch.no_grad()
def test_right_padding_changes_nothing(make_hf, load, tokens, close, family):
    directory, _ = make_hf(family)
    model = load(decoder, directory)
    padded = tokens[:1].clone()
    padded[:, 20:] = 0
    close(model(padded)[:, :20], model(tokens[:1, :20]))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@torch.no_grad()
def test_packed_sequences_do_not_see_each_other(make_hf, load, tokens, close, family):
    directory, _ = make_hf(family)
    model = load(decoder, directory)
    lengths = (20, 30)
    mask = torch.block_diag(*(torch.ones(n, n).tril() for n in lengths)).bool()[None]
    input_pos = torch.cat([torch.arange(n) for n in lengths])[None]
    packed = model(tokens[:1], mask=mask, input_pos=input_pos)
    close(packed[:, :20], model(tokens[:1, :20]))
    close(packed[:, 20:], model(tokens[:1, 20:]))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@torch.no_grad()
def test_decoding_with_a_cache(make_hf, load, tokens, close, family):
    directory, _ = make_hf(family)
    model = load(decoder, directory)
    expected = model(tokens)
    model.setup_caches(batch_size=2, dtype=torch.float32, decoder_max_seq_len=50)
    causal = torch.ones(50, 50).tril().bool()
    for start, stop in ((0, 40), (40, 41), (41, 42)):
        positions = torch.arange(start, stop)
        mask = causal[start:stop].expand(2, -1, -1)
        logits = model(tokens[:, start:stop], mask=mask, input_pos=positions)
        close(logits, expected[:, start:stop])


@torch.no_grad()
def test_bf16_is_as_exact_as_transformers(make_hf, load, tokens):
    directory, reference = make_hf("qwen3", rope_parameters=LLAMA3)
    exact = reference(tokens).logits
    theirs = reference.bfloat16()(tokens).logits.float()
    ours = load(decoder, directory).bfloat16()(tokens)
    assert (ours - exact).square().mean() < 1.5 * (theirs - exact).square().mean()


def test_max_seq_len_bounds_the_rope_cache(make_hf, load, tokens):
    directory, _ = make_hf("llama")
    assert decoder(directory).max_seq_len == 64
    model = load(decoder, directory, max_seq_len=20)
    assert model.layers[0].attn.pos_embeddings.cache.shape == (20, 2, 4)
    with pytest.raises(ValueError, match="max_seq_len"):
        model(tokens)


def test_attention_dropout_acts_in_training_only(make_hf, load, tokens, close):
    directory, reference = make_hf("qwen3")
    model = load(decoder, directory, attn_dropout=0.5)
    close(model(tokens), reference(tokens).logits)
    assert not torch.allclose(model.train()(tokens), reference(tokens).logits, atol=1e-2)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (["q_proj"], {"q_proj"}),
        (["output_proj", "v_proj"], {"output_proj", "v_proj"}),
    ],
)
@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("head", [False, True])
def test_lora_is_where_asked(make_hf, places, expected, mlp, head):
    directory, _ = make_hf("qwen2")
    model = lora_decoder(directory, places, mlp, head, lora_rank=3, lora_alpha=7, lora_dropout=0.1)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}
    assert {name.rpartition(".")[2] for name in layers} == (
        expected | ({"w1", "w2", "w3"} if mlp else set()) | ({"output"} if head else set())
    )
    assert len(layers) == 3 * (len(expected) + 3 * mlp) + head
    for layer in layers.values():
        assert (layer.rank, layer.alpha, layer.dropout.p) == (3, 7, 0.1)


@torch.no_grad()
def test_untrained_lora_is_the_identity(make_hf, load, tokens, close):
    directory, reference = make_hf("qwen2")
    model = load(lora_decoder, directory, ["q_proj", "k_proj"], True, True)
    close(model(tokens), reference(tokens).logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lora_attn_modules": ["q_proj", "o_proj"]}, "'o_proj' is none of q_proj"),
        ({"lora_attn_modules": []}, "no module gets LoRA"),
        ({"lora_attn_modules": ["q_proj"], "lora_rank": 0}, "lora_rank is 0"),
        ({"lora_attn_modules": ["q_proj"], "apply_lora_to_output": True}, "tied"),
    ],
)
def test_invalid_lora_settings(make_hf, arguments, message):
    directory, _ = make_hf("llama", tie_word_embeddings=True)
    with pytest.raises(ValueError, match=message):
        lora_decoder(directory, **arguments)


def test_as_components_of_a_config(make_hf):
    directory, _ = make_hf("llama")
    node = {
        "_component_": "hf_models.lora_decoder",
        "checkpoint_dir": str(directory),
        "lora_attn_modules": ["q_proj"],
        "output_hidden_states": True,
    }
    model = config.instantiate(OmegaConf.create(node))
    assert model.output_hidden_states == []


@pytest.mark.parametrize(
    ("changes", "feature"),
    [
        ({"model_type": "qwen3_moe"}, "qwen3_moe"),
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": None}, "model_type None"),
        (
            {"layer_types": None, "use_sliding_window": True, "sliding_window": 8}
            | {"max_window_layers": 1},
            "sliding_attention",
        ),
        ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "sliding"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "gelu"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "dynamic",
        ),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial"),
        ({"num_attention_heads": 3}, "num_key_value_heads 2"),
        ({"head_dim": 7}, "head_dim"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_supported_is_refused_by_name(make_hf, changes, feature):
    directory, _ = make_hf("qwen3")
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=feature) as error:
        decoder(directory)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_sliding_window_that_is_not_in_force_is_accepted(make_hf):
    directory, _ = make_hf("qwen2", use_sliding_window=False, sliding_window=8)
    assert read_config(directory).num_hidden_layers == 3


@pytest.mark.parametrize("content", ["{", "[]"])
def test_malformed_config(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json: "):
        read_config(tmp_path)


def test_missing_directory_and_config(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such model directory"):
        decoder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"config\.json: not found"):
        decoder(tmp_path)
