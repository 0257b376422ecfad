"""A decoder as a model: view, head, stacks, and completions against those of transformers."""

import pytest
import torch
from conftest import FAMILIES
from torchtune.models.qwen2 import qwen2
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_models import (
    DecoderModel,
    HFCheckpointer,
    Sampling,
    decoder,
    load_weights,
    lora_decoder,
    merged_state_dict,
)
from hf_models.blocks import checkpoint_blocks, compile_blocks
from hf_models.sampling import choose

LORA = ["q_proj", "v_proj"]
GREEDY = Sampling(max_new_tokens=12, temperature=0)
every_family = pytest.mark.parametrize("family", FAMILIES)


def prompts_of(*lengths, vocab=61):
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(vocab, (length,), generator=generator) for length in lengths]


def greedy_by_transformers(model, prompt, num, stop_ids=()):
    """Token by token through transformers' own generate."""
    options = {"do_sample": False, "max_new_tokens": num, "pad_token_id": 0}
    options["eos_token_id"] = list(stop_ids) or None
    return model.generate(prompt[None], **options)[0, len(prompt) :]


@every_family
def test_a_view_is_transformers_hidden_states(make_hf, load, tokens, family):
    directory, theirs = make_hf(family)
    model = DecoderModel(load(decoder, directory))
    with torch.no_grad():
        output = theirs(tokens, output_hidden_states=True)
        view = model.view({"tokens": tokens}, [("decoder", 0), ("decoder", -2)])
        logits = model.head().logits(view.hidden)
        whole = model.module(tokens)
    torch.testing.assert_close(logits, output.logits, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(whole, output.logits, atol=2e-4, rtol=1e-4)
    assert view.taps.keys() == {("decoder", 0), ("decoder", 1)}
    for (_, layer), hidden in view.taps.items():
        wanted = output.hidden_states[layer + 1]
        torch.testing.assert_close(hidden, wanted, atol=2e-4, rtol=1e-4)


def test_facts_are_known_on_the_meta_device(make_hf):
    directory, _ = make_hf("qwen3")
    with torch.device("meta"):
        facts = DecoderModel(decoder(directory, max_seq_len=48)).facts
    assert (facts.task, facts.vocabulary, facts.max_positions) == ("causal_lm", 61, 48)
    assert {name: (s.depth, s.width) for name, s in facts.stacks.items()} == {"decoder": (3, 32)}


def test_without_logits_the_layers_above_the_taps_do_not_run(make_hf, load, tokens):
    directory, _ = make_hf("llama")
    model = DecoderModel(load(decoder, directory))
    ran = []
    for i, block in enumerate(model.stacks()["decoder"]):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    whole = model.view({"tokens": tokens}, [("decoder", 1)])
    assert ran == [0, 1, 2]
    ran.clear()
    part = model.view({"tokens": tokens}, [("decoder", 1)], logits=False)
    assert ran == [0, 1]
    assert torch.equal(part.taps["decoder", 1], whole.taps["decoder", 1])
    assert len(model.stacks()["decoder"]) == 3


@pytest.mark.parametrize("stop_at", [None, 5])
@every_family
def test_greedy_completions_are_transformers_own(make_hf, load, family, stop_at):
    directory, theirs = make_hf(family)
    model = DecoderModel(load(decoder, directory))
    prompts = prompts_of(3, 11, 1, 7)
    free = [greedy_by_transformers(theirs, prompt, 12) for prompt in prompts]
    # A token that some completion has in its middle, so that rows end at different times.
    stops = [] if stop_at is None else [free[1][stop_at].item(), free[3][2].item()]
    ours = model.generate(prompts, GREEDY, stops)
    lengths = set()
    for prompt, completion in zip(prompts, ours, strict=True):
        assert torch.equal(completion, greedy_by_transformers(theirs, prompt, 12, stops))
        lengths.add(len(completion))
    assert (min(lengths) < 12) == (stop_at is not None)


@pytest.mark.parametrize("use_dora", [False, True])
def test_the_adapter_takes_part_and_dropout_does_not(make_hf, load, randomize_lora, use_dora):
    directory, _ = make_hf("llama")
    options = {"lora_rank": 4, "lora_dropout": 0.5, "use_dora": use_dora}
    adapted = load(lora_decoder, directory, LORA, **options)
    randomize_lora(adapted)
    merged, *_ = merged_state_dict(adapted)
    plain = load(decoder, directory)
    prompts = prompts_of(4, 9)
    before = DecoderModel(plain).generate(prompts, GREEDY, [])
    load_weights(plain, merged, "cpu", torch.float32)
    adapted.train()
    ours = DecoderModel(adapted).generate(prompts, GREEDY, [])
    assert adapted.training
    for one, other in zip(ours, DecoderModel(plain).generate(prompts, GREEDY, []), strict=True):
        assert torch.equal(one, other)
    assert any(not torch.equal(a, b) for a, b in zip(ours, before, strict=True))


def test_a_seed_gives_its_completion_in_any_batch(make_hf, load):
    directory, _ = make_hf("qwen3")
    model = DecoderModel(load(decoder, directory))
    sampling = Sampling(max_new_tokens=10, temperature=3.0, top_k=40, top_p=0.95)
    prompts, seeds = prompts_of(5, 2, 8), [11, 12, 13]
    together = model.generate(prompts, sampling, [7, 9], seeds)
    for prompt, seed, completion in zip(prompts, seeds, together, strict=True):
        (alone,) = model.generate([prompt], sampling, [7, 9], [seed])
        assert torch.equal(alone, completion)
    others = model.generate(prompts, sampling, [7, 9], [21, 22, 23])
    assert any(not torch.equal(a, b) for a, b in zip(together, others, strict=True))


@pytest.mark.parametrize("prepared", [checkpoint_blocks, compile_blocks, lambda model: None])
def test_generating_leaves_no_trace(make_hf, load, tokens, monkeypatch, prepared):
    monkeypatch.setenv("TORCH_COMPILE_BACKEND", "aot_eager")
    directory, theirs = make_hf("qwen2")
    model = DecoderModel(load(lora_decoder, directory, LORA))
    prepared(model)
    model.module.train()

    def loss_and_gradient():
        model.module.zero_grad()
        view = model.view({"tokens": tokens}, [("decoder", 1)])
        loss = view.hidden.square().sum() + view.taps["decoder", 1].sum()
        loss.backward()
        grads = [p.grad for p in model.module.parameters() if p.grad is not None]
        return loss, torch.cat([grad.flatten() for grad in grads])

    before = loss_and_gradient()
    names = list(model.module.state_dict())
    (prompt,) = prompts_of(6)
    (completion,) = model.generate([prompt], GREEDY, [])
    assert torch.equal(completion, greedy_by_transformers(theirs, prompt, 12))
    after = loss_and_gradient()
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert list(model.module.state_dict()) == names
    assert not model.module.caches_are_setup()


def test_torchtunes_own_builders_generate_too():
    torch.manual_seed(0)
    module = qwen2(
        vocab_size=61, num_layers=2, num_heads=4, num_kv_heads=2, embed_dim=32,
        intermediate_dim=40, max_seq_len=64,
    ).eval()  # fmt: skip
    prompts = prompts_of(3, 8)
    for prompt, completion in zip(
        prompts, DecoderModel(module).generate(prompts, GREEDY, []), strict=True
    ):
        tokens = prompt
        for token in completion:  # without a cache
            assert module(tokens[None])[0, -1].argmax() == token
            tokens = torch.cat([tokens, token[None]])


@pytest.mark.parametrize(
    ("sampling", "support"),
    [
        (Sampling(1), [0, 1, 2, 3, 4]),
        (Sampling(1, temperature=0.5), [0, 1, 2, 3, 4]),
        (Sampling(1, top_k=2), [1, 3]),
        (Sampling(1, top_p=0.6), [1, 3]),
        (Sampling(1, top_p=0.3), [3]),
        (Sampling(1, temperature=0), [3]),
    ],
)
def test_tokens_come_as_often_as_their_probability_says(sampling, support):
    probs = torch.tensor([0.1, 0.3, 0.15, 0.4, 0.05], dtype=torch.float64)
    num = 4000
    generators = [torch.Generator().manual_seed(seed) for seed in range(num)]
    drawn = torch.tensor(choose(probs.log().expand(num, -1), sampling, generators))
    assert sorted(drawn.unique().tolist()) == support
    if sampling.temperature:
        exact = torch.zeros_like(probs)
        exact[support] = probs[support] ** (1 / sampling.temperature)
        exact /= exact.sum()
        found = drawn.bincount(minlength=5) / num
        assert (found - exact).abs().max() < 0.03  # four standard deviations of a share of 0.4


def test_prompts_that_do_not_fit_are_refused(make_hf, load):
    model = DecoderModel(load(decoder, make_hf("llama")[0]))
    with pytest.raises(ValueError, match=r"60 tokens and max_new_tokens 12 .* 64 positions"):
        model.generate(prompts_of(60), GREEDY, [])
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        model.generate([*prompts_of(3), torch.tensor([], dtype=torch.long)], GREEDY, [])
    assert model.generate([], GREEDY, []) == []


def test_bf16_caches_follow_the_weights(make_hf):
    directory, _ = make_hf("llama")
    with torch.device("meta"):
        module = decoder(directory)
    weights = HFCheckpointer(directory).load_checkpoint()["model"]
    load_weights(module, weights, "cpu", torch.bfloat16)
    model = DecoderModel(module.eval())
    (prompt,) = prompts_of(5)
    (completion,) = model.generate([prompt], GREEDY, [])
    hidden = model.view({"tokens": torch.cat([prompt, completion])[None]}).hidden[0, 4:-1]
    chosen = model.head().logits(hidden).gather(-1, completion[:, None]).squeeze(-1)
    # bf16 rounds the cached keys as it rounds those of a whole forward: within a step of the best.
    assert (model.head().logits(hidden).amax(-1) - chosen).max() < 0.1


def test_a_real_model_says_what_it_says_in_transformers(embedded_model_dir):
    theirs = AutoModelForCausalLM.from_pretrained(embedded_model_dir, dtype=torch.float32).eval()
    words = AutoTokenizer.from_pretrained(embedded_model_dir)
    texts = ("The capital of France is", "Water boils when it is heated, because")
    prompts = [words(text, return_tensors="pt").input_ids[0] for text in texts]
    module = decoder(embedded_model_dir, max_seq_len=64)
    load_weights(module, HFCheckpointer(embedded_model_dir).load_checkpoint()["model"], "cpu")
    ours = DecoderModel(module.eval()).generate(prompts, GREEDY, [])
    assert "Paris" in words.decode(ours[0])
    for prompt, completion in zip(prompts, ours, strict=True):
        assert torch.equal(completion, greedy_by_transformers(theirs, prompt, 12))
