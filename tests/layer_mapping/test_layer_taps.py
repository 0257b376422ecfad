import gc
import weakref

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint
from torchtune.modules import TransformerSelfAttentionLayer
from torchtune.training import compile_model, set_activation_checkpointing

from layer_mapping import LayerTaps

ALL_LAYERS = [0, 1, 2, 3]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()


def layer_inputs_and_logits(model, tokens):
    """torchtune's own record: the input of every layer, then the logits."""
    model.output_hidden_states = ALL_LAYERS
    *inputs, logits = model(tokens)
    model.output_hidden_states = []
    return inputs, logits


def checkpoint_layers(model):
    set_activation_checkpointing(model, auto_wrap_policy={TransformerSelfAttentionLayer})
    assert all(isinstance(layer, CheckpointWrapper) for layer in model.layers)


def tapped_gradients(model, tokens, layers):
    """Gradients of a loss of the tapped outputs alone, and the outputs."""
    taps = LayerTaps(model, layers)
    with taps:
        model(tokens)
    outputs = dict(taps.outputs)
    sum(output.square().sum() for output in outputs.values()).backward()
    assert all(taps.outputs[layer] is outputs[layer] for layer in layers)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, outputs


def assert_same(gradients, expected):
    # Checkpoint wrappers add to the names but not to the order.
    torch.testing.assert_close(list(gradients.values()), list(expected.values()))


def test_taps_are_torchtunes_layer_outputs(decoder, tokens):
    inputs, logits = layer_inputs_and_logits(decoder, tokens)
    with LayerTaps(decoder, ALL_LAYERS) as taps:
        decoder(tokens)
    assert list(taps.outputs) == ALL_LAYERS
    for layer in ALL_LAYERS[:-1]:
        assert torch.equal(taps.outputs[layer], inputs[layer + 1])
    # The last layer's output comes before the final norm.
    assert torch.equal(decoder.output(decoder.norm(taps.outputs[3])).float(), logits)


def test_taps_are_transformers_hidden_states(hf_model, tokens):
    with LayerTaps(hf_model.model, ALL_LAYERS) as taps:
        hidden_states = hf_model(tokens, output_hidden_states=True).hidden_states
    for layer in ALL_LAYERS[:-1]:
        assert torch.equal(taps.outputs[layer], hidden_states[layer + 1])
    assert torch.equal(hf_model.model.norm(taps.outputs[3]), hidden_states[4])


def test_a_recompute_inside_the_block_does_not_overwrite():
    class Model(nn.Module):
        """Checkpoints its layers with their hooks, where a wrapper would leave those outside."""

        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))

        def forward(self, hidden):
            for layer in self.layers:
                hidden = checkpoint(layer, hidden, use_reentrant=False, early_stop=False)
            return hidden

    model = Model()
    runs = []
    model.layers[1].register_forward_hook(lambda *_: runs.append(1))
    with LayerTaps(model, [0, 1]) as taps:
        model(torch.ones(1, 2, 3))
        outputs = dict(taps.outputs)
        outputs[1].sum().backward()
    assert len(runs) == 2
    assert all(taps.outputs[layer] is outputs[layer] for layer in (0, 1))


def test_a_tuple_stands_for_its_first_item():
    class Layer(nn.Module):
        def forward(self, hidden):
            return hidden + 1, "attention weights"

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Layer(), Layer()])

        def forward(self, hidden):
            for layer in self.layers:
                hidden, _ = layer(hidden)
            return hidden

    model = Model()
    with LayerTaps(model, [0, 1]) as taps:
        model(torch.zeros(1, 2, 3))
    assert [taps.outputs[i].unique().item() for i in (0, 1)] == [1, 2]


def test_only_chosen_layers_are_recorded_and_negatives_count_from_the_end(decoder, tokens):
    taps = LayerTaps(decoder, [-1, 1, 3])
    assert taps.layers == [1, 3]
    with taps:
        decoder(tokens)
    assert sorted(taps.outputs) == [1, 3]


@pytest.mark.parametrize("layer", [4, -5])
def test_a_layer_out_of_range(decoder, layer):
    with pytest.raises(ValueError, match=f"layer {layer} is out of range; the model has 4 layers"):
        LayerTaps(decoder, [0, layer])


def test_a_model_without_layers_is_told_what_to_pass(hf_model):
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has no decoder layers.*model\.model"):
        LayerTaps(hf_model, [0])


def test_each_pass_starts_anew(decoder, tokens):
    taps = LayerTaps(decoder, [2])
    with taps:
        decoder(tokens)
        first = taps.outputs[2]
        decoder(tokens.flip(0))
        assert torch.equal(taps.outputs[2], first.flip(0))
    with taps:
        assert taps.outputs == {}
        decoder(tokens)
    assert torch.equal(taps.outputs[2], first)


def test_nothing_is_recorded_outside_the_block(decoder, tokens):
    taps = LayerTaps(decoder, [2])
    decoder(tokens)
    assert taps.outputs == {}
    with taps:
        decoder(tokens)
    recorded = taps.outputs[2]
    decoder(tokens.flip(0))
    assert taps.outputs[2] is recorded


def test_taps_follow_layers_that_are_wrapped_later(decoder, tokens):
    taps = LayerTaps(decoder, [1])
    checkpoint_layers(decoder)
    with taps:
        decoder(tokens)
    assert 1 in taps.outputs


def test_only_layers_up_to_the_tap_take_its_gradient(lora_decoder, tokens):
    gradients, _ = tapped_gradients(lora_decoder, tokens, [1])
    assert {name.split(".")[1] for name in gradients} == {"0", "1"}
    lora = {n for n, p in lora_decoder.named_parameters() if p.requires_grad}
    assert set(gradients) == {n for n in lora if n.split(".")[1] in "01"}
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())


def test_activation_checkpointing_changes_nothing(make_decoder, tokens):
    expected, plain_outputs = tapped_gradients(make_decoder(), tokens, [1, 3])
    model = make_decoder()
    checkpoint_layers(model)
    gradients, outputs = tapped_gradients(model, tokens, [1, 3])
    assert_same(gradients, expected)
    torch.testing.assert_close(outputs, plain_outputs, rtol=0, atol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("untapped_first", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_layers_compiled_one_by_one(
    make_decoder, tokens, monkeypatch, checkpointing, untapped_first, backend
):
    monkeypatch.setenv("TORCH_COMPILE_BACKEND", backend)
    expected, plain_outputs = tapped_gradients(make_decoder(), tokens, [1, 3])
    model = make_decoder()
    compile_model(model, verbose=False)
    if checkpointing:
        checkpoint_layers(model)
    if untapped_first:  # a compilation that never saw the hooks
        model(tokens).sum().backward()
        model.zero_grad()
    gradients, outputs = tapped_gradients(model, tokens, [1, 3])
    torch.testing.assert_close(outputs, plain_outputs)
    assert_same(gradients, expected)


def test_one_compilation_serves_every_tapped_layer(decoder, tokens):
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph

    for layer in decoder.layers:
        layer.compile(backend=count)
    for _ in range(2):
        with LayerTaps(decoder, ALL_LAYERS), torch.no_grad():
            decoder(tokens)
    assert len(graphs) == 1


def test_a_model_compiled_whole_is_recorded_if_tapped_from_the_start(make_decoder, tokens):
    expected, _ = tapped_gradients(make_decoder(), tokens, [1, 3])
    model = make_decoder()
    taps = LayerTaps(model, [1, 3])
    compiled = torch.compile(model, backend="aot_eager")
    with taps:
        compiled(tokens)
    sum(output.square().sum() for output in taps.outputs.values()).backward()
    assert_same({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, expected)


def test_a_layer_that_was_not_recorded_is_an_error(decoder, tokens):
    compiled = torch.compile(decoder, backend="eager")
    compiled(tokens)
    taps = LayerTaps(decoder, [1, 3])
    with pytest.raises(ValueError, match=r"layers \[1, 3\] were not recorded.*one by one"), taps:
        compiled(tokens)


def test_no_tensor_outlives_clear(decoder, tokens):
    taps = LayerTaps(decoder, ALL_LAYERS)
    with taps:
        decoder(tokens)
    sum(output.sum() for output in taps.outputs.values()).backward()
    references = [weakref.ref(output) for output in taps.outputs.values()]
    assert all(reference() is not None for reference in references)
    gc.disable()  # a reference cycle would need the collector
    try:
        taps.clear()
        assert [reference() for reference in references] == [None] * 4
    finally:
        gc.enable()


def test_an_exception_leaves_nothing_behind(decoder, tokens):
    taps = LayerTaps(decoder, [1], truncate=True)

    def interrupted():
        with taps:
            decoder(tokens)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert taps.outputs == {}
    decoder(tokens)
    assert taps.outputs == {}
    assert len(decoder.layers) == 4


def test_sharded_layers(make_decoder, tokens):
    expected, plain_outputs = tapped_gradients(make_decoder(), tokens, [1, 3])
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = make_decoder()
        checkpoint_layers(model)
        for layer in model.layers:
            fully_shard(layer)
        fully_shard(model)
        gradients, outputs = tapped_gradients(model, tokens, [1, 3])
        assert_same({name: g.full_tensor() for name, g in gradients.items()}, expected)
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(outputs, plain_outputs)


def test_truncate_runs_the_layers_that_are_needed(decoder, tokens):
    runs = []
    for i, layer in enumerate(decoder.layers):
        layer.register_forward_hook(lambda *_, i=i: runs.append(i))
    names = list(decoder.state_dict())
    inputs, _ = layer_inputs_and_logits(decoder, tokens)
    runs.clear()
    with LayerTaps(decoder, [0, 1], truncate=True) as taps:
        decoder(tokens)
    assert runs == [0, 1]
    assert torch.equal(taps.outputs[1], inputs[2])
    decoder(tokens)
    assert runs == [0, 1, *ALL_LAYERS]
    assert list(decoder.state_dict()) == names


def test_truncate_on_transformers(hf_model, tokens):
    with torch.no_grad(), LayerTaps(hf_model.model, [1], truncate=True) as taps:
        hf_model.model(tokens)
    hidden_states = hf_model(tokens, output_hidden_states=True).hidden_states
    assert torch.equal(taps.outputs[1], hidden_states[2])
    assert len(hf_model.model.layers) == 4


def test_no_layers_record_nothing(decoder, tokens):
    with LayerTaps(decoder, [], truncate=True) as taps:
        logits = decoder(tokens)
    assert taps.outputs == {}
    assert torch.equal(logits, decoder(tokens))
