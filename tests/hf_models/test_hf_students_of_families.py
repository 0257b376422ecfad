"""Students of every family: against teachers whose other blocks were taken out by hand."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
import transformers
from families import FAMILIES, Samples, auto_class, save_family
from torch import nn

from hf_models import auto_model, copied_blocks, init_student
from hf_models.block_scores import Calibration, block_scores, kept_blocks
from hf_models.loading import load
from kd_data.tasks import collate, collate_seq2seq

# Not T5's block 0 alone, which has the relative positions of all.
CHOSEN = {"encoder": [1, 3], "decoder": [2, 0]}
CHOSEN_SHORT = {"encoder": [1, 3], "decoder": [1]}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("teachers"), {}

    def make(family):
        if family not in made:
            made[family] = save_family(root / family, family)
        return made[family]

    return make


def opened(family, directory):
    model, report = auto_class(family).from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


@torch.no_grad()
def logits(model, family):
    found = []
    for sample in Samples(None, FAMILIES[family].task, size=3):
        given = {"input_ids": torch.tensor([sample["tokens"]])}
        if FAMILIES[family].task == "seq2seq_lm":
            given["labels"] = torch.tensor([sample["labels"]])
        found.append(model(**given, **no_cache(family)).logits.flatten())
    return torch.cat(found)


def no_cache(family):
    """A block that was moved by hand would look for the cache of its old place."""
    causal = FAMILIES[family].task == "causal_lm" or family == "qwen3_classifier"
    return {"use_cache": False} if causal else {}


def chosen_of(family):
    stacks = FAMILIES[family].blocks
    chosen = CHOSEN if len(stacks) == 1 else CHOSEN_SHORT
    return {stack: chosen[stack] for stack in stacks}


def pruned(model, family, chosen):
    """The model with these blocks alone."""
    for stack, path in FAMILIES[family].blocks.items():
        blocks = model.get_submodule(path)
        kept = [blocks[i] for i in chosen[stack]]
        if family == "t5":
            first = kept[0].layer[0].SelfAttention
            first.has_relative_attention_bias = True
            first.relative_attention_bias = blocks[0].layer[0].SelfAttention.relative_attention_bias
        parent = model.get_submodule(path.rpartition(".")[0])
        setattr(parent, path.rpartition(".")[2], nn.ModuleList(kept))
    model.config.num_hidden_layers = len(next(iter(chosen.values())))
    kinds = getattr(model.config, "layer_types", None)
    if kinds:
        model.config.layer_types = [kinds[i] for i in next(iter(chosen.values()))]
    return model


def spec(values):
    """Of one stack alone, or by stack."""
    return next(iter(values.values())) if len(values) == 1 else values


@pytest.mark.parametrize("family", FAMILIES)
def test_copied_blocks_are_the_teachers(teachers, tmp_path, family):
    chosen = chosen_of(family)
    student = init_student(teachers(family), tmp_path / "student", layers=spec(chosen))
    expected = logits(pruned(opened(family, teachers(family)), family, chosen), family)
    assert torch.allclose(logits(opened(family, student), family), expected, atol=1e-6)
    assert copied_blocks(student) == chosen
    assert (
        "| 0 | 1 |" in (student / "README.md").read_text()
        or "| 0 | 2 |" in (student / "README.md").read_text()
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_all_blocks_are_the_teacher(teachers, tmp_path, family):
    depths = {name: s.depth for name, s in auto_model(teachers(family)).facts.stacks.items()}
    student = init_student(teachers(family), tmp_path / "student", num_layers=spec(depths))
    ours, theirs = (logits(opened(family, one), family) for one in (student, teachers(family)))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_weights_are_seeded(teachers, tmp_path, family):
    counts = spec(dict.fromkeys(FAMILIES[family].blocks, 1))
    first, same, other = (
        logits(
            opened(
                family,
                init_student(
                    teachers(family), tmp_path / name, num_layers=counts, mode="random_init",
                    seed=seed,
                ),
            ),
            family,
        )
        for name, seed in (("first", 1), ("same", 1), ("other", 2))
    )  # fmt: skip
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("width", [384, 576])
def test_a_bert_of_another_width(teachers, tmp_path, width):
    student = init_student(
        teachers("bert"),
        tmp_path / "student",
        num_layers=2,
        mode="random_init",
        overrides={"hidden_size": width, "num_attention_heads": 12, "intermediate_size": 4 * width},
    )
    model = opened("bert", student)
    assert model.bert.embeddings.word_embeddings.weight.shape[1] == width
    assert model.config.num_attention_heads == 12


def test_a_bare_model_stays_one(teachers, tmp_path):
    transformers.AutoModel.from_pretrained(teachers("bert")).save_pretrained(tmp_path / "bare")
    init_student(tmp_path / "bare", tmp_path / "student", layers=[3, 0])
    model, report = transformers.BertModel.from_pretrained(
        tmp_path / "student", output_loading_info=True
    )
    assert not any(report.values()), report
    assert len(model.encoder.layer) == 2


def test_kinds_of_attention_that_the_config_leaves_out_stay_with_their_blocks(teachers, tmp_path):
    teacher = tmp_path / "teacher"
    shutil.copytree(teachers("gemma2"), teacher)
    config = json.loads((teacher / "config.json").read_text())
    del config["layer_types"]  # derived then: every other block has a window
    (teacher / "config.json").write_text(json.dumps(config))
    student = init_student(teacher, tmp_path / "student", layers=[1, 3])
    assert opened("gemma2", student).config.layer_types == ["full_attention"] * 2
    expected = logits(pruned(opened("gemma2", teacher), "gemma2", {"decoder": [1, 3]}), "gemma2")
    assert torch.allclose(logits(opened("gemma2", student), "gemma2"), expected, atol=1e-6)


def test_a_pretrained_model_may_lack_or_have_more_than_its_class(teachers, tmp_path):
    """As published BERTs do: a pooler that their class has not."""
    model = transformers.BertForPreTraining(
        transformers.AutoConfig.from_pretrained(teachers("bert"))
    )
    model.save_pretrained(tmp_path / "teacher")
    config = json.loads((tmp_path / "teacher" / "config.json").read_text())
    config["architectures"] = ["BertForMaskedLM"]
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(config))
    student = init_student(tmp_path / "teacher", tmp_path / "student", num_layers=2)
    model, report = auto_class("bert").from_pretrained(student, output_loading_info=True)
    assert {name.split(".")[0] for name in report["missing_keys"]} == {"classifier"}
    assert len(model.bert.encoder.layer) == 2


@pytest.mark.parametrize(
    ("family", "arguments", "words"),
    [
        ("t5", {"num_layers": 2}, "num_layers must say it for each stack: {encoder: ..., decoder"),
        ("t5", {"layers": {"encodr": [0]}}, "no stack 'encodr'; it has encoder, decoder"),
        ("bert", {"layers": {"decoder": [0]}}, "no stack 'decoder'; it has encoder"),
        ("bert", {"layers": "block_influenc", "num_layers": 2}, "block_influence"),
        ("bert", {"layers": "block_influence"}, "needs num_layers"),
        ("bert", {"layers": "block_influence", "num_layers": 2}, "set dataset and tokenizer"),
        ("bert", {"layers": ["a"]}, "layers: 'a' is no layer"),
        ("bert", {"layers": [True, 2]}, "layers: True is no layer"),
        ("bert", {"layers": 3}, "layers is 3; it must be a list"),
        ("t5", {"layers": {"encoder": "abc"}}, "layers is 'abc'; it must be a list"),
        ("bert", {"num_layers": 1.5}, "num_layers is 1.5; it must be a whole number"),
        ("t5", {"num_layers": {}}, "num_layers names no stack"),
        ("bert", {"mode": "random_init", "overrides": {"hiden_size": 8}}, "mean hidden_size"),
        ("bert", {"mode": "random_init", "overrides": {"hidden_size": 30}}, "no such model"),
    ],
)
def test_what_cannot_be_made_is_refused(teachers, tmp_path, family, arguments, words):
    with pytest.raises(ValueError, match=r"\w") as error:
        init_student(teachers(family), tmp_path / "student", **arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def of_hidden_states(family, directory, samples, stack, start, length):
    """Mean cosine between what goes into a run of blocks and what comes out, token by token."""
    model, seen = auto_class(family).from_pretrained(directory).eval(), {}
    blocks = model.get_submodule(FAMILIES[family].blocks[stack])

    def before(module, args, kwargs):
        seen["in"] = args[0] if args else kwargs["hidden_states"]

    def after(module, args, output):
        seen["out"] = output[0] if isinstance(output, tuple) else output

    blocks[start].register_forward_pre_hook(before, with_kwargs=True)
    blocks[start + length - 1].register_forward_hook(after)
    cosines = []
    for sample in samples:
        given = {"input_ids": torch.tensor([sample["tokens"]])}
        if FAMILIES[family].task == "seq2seq_lm":
            given["labels"] = torch.tensor([sample["labels"]])
        with torch.no_grad():
            model(**given)
        cosines.append(F.cosine_similarity(seen["in"], seen["out"], dim=-1).flatten())
    return torch.cat(cosines)


@pytest.mark.parametrize(
    ("family", "stack"), [("gpt2", "decoder"), ("t5", "encoder"), ("bart", "encoder")]
)
def test_blocks_are_scored_by_how_they_turn_their_input(teachers, family, stack):
    model = auto_model(teachers(family))
    load(model, model.layout.read(teachers(family), None), "cpu")
    model.module.eval()
    samples = list(Samples(None, model.facts.task, size=5))
    if model.facts.task == "causal_lm":
        batch = collate(samples, 0)
    else:
        batch = collate_seq2seq(samples, 0, model.facts.decoder_start_id)
    batches = [Calibration(batch.inputs, batch.scopes["all"])]
    influence = block_scores(model, batches, "block_influence", {stack: 2})[stack]
    angles = block_scores(model, batches, "angular_distance", {stack: 2})[stack]
    for start in range(4):
        cosines = of_hidden_states(family, teachers(family), samples, stack, start, 1)
        assert influence[start] == pytest.approx((1 - cosines).mean().item(), abs=1e-5)
    for start in range(3):
        cosines = of_hidden_states(family, teachers(family), samples, stack, start, 2)
        expected = (torch.arccos(cosines.clamp(-1, 1)) / torch.pi).mean().item()
        assert angles[start] == pytest.approx(expected, abs=1e-4)


def test_what_is_kept():
    scores = [0.5, 0.1, 0.3, 0.2, 0.9]
    assert kept_blocks(scores, "block_influence", 3, 5) == [0, 2, 4]
    assert kept_blocks([0.5, 0.1, 0.3, 0.2], "angular_distance", 3, 5) == [0, 3, 4]


def test_the_origin_is_for_programs_too(teachers, tmp_path):
    student = init_student(teachers("bert"), tmp_path / "student", num_layers=2)
    origin = json.loads((student / "init_student.json").read_text())
    assert origin == {
        "teacher": "bert",
        "copied": {"encoder": [1, 3]},
        "chosen_by": "evenly spaced",
        "scores": {},
        "depths": {"encoder": 4},
    }
