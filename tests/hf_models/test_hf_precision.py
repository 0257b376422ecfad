"""Weights kept in fp32 and computed with in bf16, against models that are in bf16 altogether."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchtune.models.llama3_2 import lora_llama3_2
from torchtune.modules.peft import get_adapter_params, set_trainable_params
from torchtune.training import set_default_dtype

from hf_models import HFCheckpointer, decoder, head_weight, load_weights, lora_decoder
from hf_models.precision import compute_dtype, gather_dtype, keep_masters, master

ALL = ["q_proj", "k_proj", "v_proj", "output_proj"]
BF16 = torch.bfloat16
LORA = {"lora_attn_modules": ALL, "apply_lora_to_mlp": True, "lora_rank": 4}
SIZES = {"vocab_size": 61, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 32}
# name -> how the model is built; all heads of make_hf's models are untied
BUILDERS = {
    "all weights": decoder,
    "LoRA": lambda directory: lora_decoder(directory, **LORA, apply_lora_to_output=True),
    "QLoRA": lambda directory: lora_decoder(directory, **LORA, quantize_base=True),
    "torchtune's own": lambda _: lora_llama3_2(
        **LORA, **SIZES, lora_alpha=8, intermediate_dim=40, max_seq_len=64
    ),
}


def build(builder, directory, masters=True):
    """As a run does: in bf16 on the meta device, what is trained in fp32, then filled."""
    with set_default_dtype(BF16), torch.device("meta"):
        model = builder(directory)
    if adapter := get_adapter_params(model):
        set_trainable_params(model, adapter)
    if masters:
        keep_masters(model, BF16)
    weights = HFCheckpointer(directory).load_checkpoint()["model"]
    load_weights(model, {k: t for k, t in weights.items() if k in model.state_dict()}, "cpu")
    return model


@torch.no_grad()
def randomize(model):
    """Nothing in the trained weights is a bf16 number then, and LoRA does something."""
    generator = torch.Generator().manual_seed(3)
    for parameter in filter(lambda p: p.requires_grad, model.parameters()):
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def loss_and_gradients(model, tokens):
    loss = model(tokens).float().log_softmax(-1)[..., 7].square().mean()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, list(trained.values()))
    return loss, dict(zip(trained, gradients, strict=True))


@pytest.mark.parametrize("kind", BUILDERS)
def test_masters_compute_what_a_bf16_model_computes(make_hf, tokens, kind):
    directory, _ = make_hf("llama", tie_word_embeddings=kind == "torchtune's own")
    model = build(BUILDERS[kind], directory)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if name in trained else BF16), name
    assert compute_dtype(model) == BF16
    assert gather_dtype(model) == (BF16 if kind == "all weights" else None)

    plain = build(BUILDERS[kind], directory, masters=False)
    assert {p.dtype for p in plain.parameters()} == {BF16}
    assert model.state_dict().keys() == plain.state_dict().keys()
    randomize(model)
    randomize(plain)  # the same, rounded
    loss, gradients = loss_and_gradients(model, tokens)
    expected, rounded = loss_and_gradients(plain, tokens)
    assert torch.equal(loss, expected)
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        if "tok_embeddings" in name:  # which bf16 sums with rounding
            off = (gradient - rounded[name].float()).norm() / gradient.norm()
            assert 0 < off < 2**-8
        else:
            assert torch.equal(gradient, rounded[name].float()), name


def test_layers_read_bf16_and_the_head_is_given_as_it_is_kept(make_hf):
    directory, _ = make_hf("llama", tie_word_embeddings=False)
    model = build(decoder, directory)
    assert isinstance(model.output, nn.Linear)
    assert model.output.weight.dtype == model.norm.scale.dtype == BF16
    assert head_weight(model) is master(model.output)
    assert head_weight(model).dtype == torch.float32
    model.output.weight = nn.Parameter(torch.zeros(61, 32))
    assert not model.state_dict()["output.weight"].any()


def test_checkpointed_and_compiled_layers_compute_the_same(make_hf):
    directory, _ = make_hf("qwen3")
    layer = build(lambda d: lora_decoder(d, **LORA, use_dora=True), directory).layers[0]
    randomize(layer)
    hidden = torch.randn(2, 9, 32, dtype=BF16)
    trained = [p for p in layer.parameters() if p.requires_grad]

    def run(forward):
        out = forward(hidden)
        return [out, *torch.autograd.grad(out.float().square().sum(), trained)]

    expected = run(layer)
    again = run(lambda x: checkpoint(layer, x, use_reentrant=False))
    compiled = run(torch.compile(layer, backend="aot_eager"))
    for plain, *others in zip(expected, again, compiled, strict=True):
        assert plain.norm() > 0
        assert all(torch.equal(plain, other) for other in others)


def test_a_frequent_token_sums_its_gradient_in_fp32():
    """A thousand small contributions to a large one: bf16 would drop them all."""
    embeddings = nn.Embedding(3, 1).bfloat16()
    keep_masters(embeddings, BF16)
    contributions = torch.full((1001, 1), 1 / 512)
    contributions[0] = 1.0
    rows = embeddings(torch.zeros(1001, dtype=torch.long))
    assert rows.dtype == BF16
    (rows * contributions).sum().backward()
    assert master(embeddings).grad[0].item() == 1 + 1000 / 512


def test_nothing_is_done_in_fp32(make_hf):
    directory, _ = make_hf("llama")
    model = decoder(directory)
    before = [(type(m), [id(p) for p in m.parameters()]) for m in model.modules()]
    keep_masters(model, torch.float32)
    assert [(type(m), [id(p) for p in m.parameters()]) for m in model.modules()] == before
    assert compute_dtype(model) is gather_dtype(model) is None


@pytest.mark.parametrize("file_dtype", [BF16, torch.float32])
def test_masters_come_from_the_file_without_a_detour(make_hf, file_dtype):
    directory, _ = make_hf("llama")
    path = directory / "model.safetensors"
    save_file({k: t.to(file_dtype) for k, t in load_file(path).items()}, path, {"format": "pt"})
    weights = HFCheckpointer(directory).load_checkpoint()["model"]
    assert {t.dtype for t in weights.values()} == {file_dtype}
    state = build(decoder, directory).state_dict()
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in weights.items())
    frozen = build(BUILDERS["LoRA"], directory).state_dict()
    assert all(torch.equal(frozen[name], tensor.bfloat16()) for name, tensor in weights.items())


def test_dora_starts_as_the_base_and_feels_what_bf16_cannot_hold(make_hf):
    """A row that is longer by 3/1000 is, in bf16, as long as it was or longer by 1/256 or 1/128."""
    directory, _ = make_hf("llama")
    model = build(lambda d: lora_decoder(d, ["q_proj"], use_dora=True), directory)
    layer = model.layers[0].attn.q_proj
    assert torch.equal(layer.row_scale(), torch.ones(32))
    hidden = torch.randn(2000, 32, dtype=BF16)
    before = layer(hidden).double()
    assert torch.equal(before, torch.nn.functional.linear(hidden, layer.weight).double())
    with torch.no_grad():
        master(layer, "magnitude").mul_(1.003)
    assert layer.magnitude.dtype == BF16
    torch.testing.assert_close(layer.row_scale(), torch.full((32,), 1.003), rtol=1e-6, atol=0)
    # The outputs themselves have bf16's digits: each row's are longer on average.
    longer = ((layer(hidden).double() - before) * before.sign()).sum(0) / before.abs().sum(0)
    assert ((longer - 0.003).abs() < 0.001).all()
