"""Models of transformers behind our interface: generation, LoRA, taps, truncation."""

import families
import pytest
import torch
from families import FAMILIES, auto_class, save_family
from torchtune import training
from transformers import GenerationConfig

from hf_models import Sampling, auto_model, lora_auto_model
from hf_models.loading import load
from hf_models.precision import keep_masters
from kd_data.tasks import collate, collate_classification, collate_seq2seq

WRITERS = ["gpt2", "mistral", "bloom", "gemma2", "mixtral", "t5", "bart"]


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("models"), {}

    def make(family):
        if family not in made:
            made[family] = save_family(root / family, family)
        return made[family]

    return make


def loaded(directory, build=auto_model, **arguments):
    model = build(directory, **arguments)
    load(model, model.layout.read(directory, None), "cpu")
    return model


def batch_of(family, size=4):
    task = FAMILIES[family].task
    samples = list(families.Samples(None, task, size=size))
    if task == "causal_lm":
        return collate(samples, families.PAD)
    if task == "seq2seq_lm":
        return collate_seq2seq(samples, families.PAD, START_OF[family])
    return collate_classification(samples, families.PAD, 3)


START_OF = {"t5": families.PAD, "bart": families.END}
PROMPTS = [torch.tensor([1, 9, 20]), torch.tensor([1, 33]), torch.tensor([1, 5, 6, 7, 8])]


@pytest.mark.parametrize("family", WRITERS)
@torch.no_grad()
def test_the_most_probable_tokens_are_transformers_own(directories, family):
    model = loaded(directories(family))
    found = model.generate(PROMPTS, Sampling(6, temperature=0.0), [families.END])
    theirs = auto_class(family).from_pretrained(directories(family)).eval()
    for prompt, completion in zip(PROMPTS, found, strict=True):
        config = GenerationConfig(
            max_new_tokens=6, do_sample=False, pad_token_id=families.PAD,
            eos_token_id=families.END, decoder_start_token_id=START_OF.get(family),
        )  # fmt: skip
        alone = theirs.generate(
            input_ids=prompt[None],
            attention_mask=torch.ones_like(prompt)[None],
            generation_config=config,
        )[0]
        start = 1 if family in START_OF else len(prompt)
        assert completion.tolist() == alone[start:].tolist()
    assert model.module.training  # as it was


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_a_seed_gives_a_prompt_one_completion_in_any_batch(directories, family):
    model = loaded(directories(family))
    sampling, seeds = Sampling(5, temperature=1.5, top_k=20), [3, 4, 5]
    together = model.generate(PROMPTS, sampling, [families.END], seeds)
    for prompt, seed, completion in zip(PROMPTS, seeds, together, strict=True):
        (alone,) = model.generate([prompt], sampling, [families.END], [seed])
        assert torch.equal(alone, completion)
    others = model.generate(PROMPTS, sampling, [families.END], [6, 7, 8])
    assert any(not torch.equal(a, b) for a, b in zip(together, others, strict=True))


@pytest.mark.parametrize(
    ("family", "prompts", "words"),
    [
        ("bert", PROMPTS, "is a classifier, which writes no text"),
        ("gpt2", [torch.tensor([], dtype=torch.long)], "prompt 0 is empty"),
        ("gpt2", [torch.arange(62)], "more than the 64 positions"),
    ],
)
def test_what_cannot_be_completed_is_refused(directories, family, prompts, words):
    with pytest.raises(ValueError, match=words):
        loaded(directories(family)).generate(prompts, Sampling(5), [families.END])


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_taps_alone_are_those_of_a_whole_forward(directories, family):
    model = loaded(directories(family))
    model.module.eval()
    batch = batch_of(family)
    *_, (stack, size) = model.facts.stacks.items()
    taps = [(name, 0) for name in model.facts.stacks]
    whole, short = (model.view(batch.inputs, taps, logits=wanted).taps for wanted in (True, False))
    assert all(torch.equal(whole[tap], short[tap]) for tap in taps)
    assert len(model.stacks()[stack]) == size.depth  # as it was


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_masters_compute_as_the_model_in_their_dtype(directories, family):
    """Embeddings of some families scale or shift what they look up; masters must not undo that."""
    theirs = auto_class(family).from_pretrained(directories(family), dtype=torch.bfloat16).eval()
    with training.set_default_dtype(torch.bfloat16):
        model = auto_model(directories(family))
    keep_masters(model.module, torch.bfloat16)
    load(model, model.layout.read(directories(family), None), "cpu")
    model.module.eval()
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    inputs = batch_of(family).inputs
    named = {"input_ids" if name == "tokens" else name: one for name, one in inputs.items()}
    expected = theirs(**named).logits
    assert model.logits(inputs).flatten().tolist() == pytest.approx(
        expected.flatten().tolist(), rel=2e-2, abs=2e-2
    )


@pytest.mark.parametrize("family", ["bert", "t5", "gpt2", "mixtral"])
def test_lora_begins_as_the_model_itself(directories, family):
    plain, adapted = loaded(directories(family)), loaded(directories(family), lora_auto_model)
    batch = batch_of(family)
    for model in (plain, adapted):
        model.module.eval()
    with torch.no_grad():
        ours, theirs = adapted.view(batch.inputs).hidden, plain.view(batch.inputs).hidden
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert adapted.train_adapter()
    assert not plain.train_adapter()
    trained = {n for n, p in adapted.module.named_parameters() if p.requires_grad}
    whole = {n for n in trained if "lora_" not in n}
    assert whole == ({"classifier.weight", "classifier.bias"} if family == "bert" else set())
    assert trained - whole


def test_lora_on_the_head_is_part_of_it(directories):
    targets = ["q_proj", "lm_head"]
    model = loaded(directories("mistral"), lora_auto_model, lora_target_modules=targets)
    model.module.eval()
    for name, parameter in model.module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    batch = batch_of("mistral")
    with torch.no_grad():
        ours = model.head().logits(model.view(batch.inputs).hidden)
        assert torch.allclose(ours, model.logits(batch.inputs), atol=1e-5)
    with pytest.raises(ValueError, match="lora_dropout must be 0"):
        lora_auto_model(directories("mistral"), lora_target_modules=targets, lora_dropout=0.1)


@pytest.mark.parametrize("family", ["gemma2", "bart", "cohere"])
def test_logits_are_never_made_in_a_view(directories, family):
    """The product with the head would be the only tensor as wide as the vocabulary."""
    model = loaded(directories(family))
    batch, widest = batch_of(family), []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            output = function(*args, **(kwargs or {}))
            for one in torch.utils._pytree.tree_leaves(output):
                if isinstance(one, torch.Tensor) and one.dim() == 3:
                    widest.append(one.shape[-1])
            return output

    with torch.no_grad(), Watch():
        model.view(batch.inputs)
    assert families.VOCABULARY not in widest
    with torch.no_grad(), Watch():
        model.logits(batch.inputs)
    assert families.VOCABULARY in widest
