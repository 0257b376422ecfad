"""Models that cannot be used are refused in one line, before or by the proof."""

import json
import re

import families
import pytest
import torch
import transformers
from families import FAMILIES, family_config
from omegaconf import OmegaConf

AUTO = "hf_models.auto_model"


@pytest.fixture
def refusal(tune_run, directories, tmp_path):
    """The line with which a run of a family ends, with changes by dotted key."""

    def run(family, changes, student=None, teacher=None, dry=False):
        own = directories(family)
        cfg = family_config(tmp_path, family, teacher or own[0], student or own[1])
        cfg = OmegaConf.create(cfg)
        for key, value in changes.items():
            OmegaConf.update(cfg, key, value, force_add=True, merge=False)
        OmegaConf.save(cfg, tmp_path / "run.yaml")
        dry_run = ("dry_run=true",) if dry else ()
        code, _, err = tune_run("kd_single_device", tmp_path / "run.yaml", *dry_run)
        assert code == 1, err
        assert "Traceback" not in err
        assert not list((tmp_path / "out").glob("epoch_*"))
        return err.strip().splitlines()[-1]

    return run


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("bert", {"model.task": "seq2seq_lm"}, "no bert for task seq2seq_lm; it has"),
        ("bert", {"model.task": "causal_lm"}, "reads in both directions"),
        ("bert", {"model.task": "clasification"}, "use causal_lm, seq2seq_lm, sequence_classif"),
        ("bert", {"model.num_labels": 1}, "num_labels is 1; a classifier has 2"),
        ("bert", {"model.num_labels": 5}, "model has 5 classes, but teacher_model 3"),
        ("t5", {"model.num_labels": 3}, "num_labels is 3, but .* is for seq2seq_lm"),
        ("bert", {"dataset.task": "causal_lm"}, "labels, but a classifier's has one"),
        ("t5", {"dataset.task": "causal_lm"}, "partly masked, as a causal model's are"),
        ("bert", {"layer_mapping": {"decoder": "forward"}}, "no stack 'decoder'; it has encoder"),
        ("t5", {"layer_mapping": "forward"}, "layer_mapping must say it for each stack"),
        ("bert", {"tokenizer.max_seq_len": 50}, "model takes 40 positions"),
        ("bloom", {"dataset.packed": True}, "cannot keep several documents of one row apart"),
        ("bert", {"dataset.packed": True}, "cannot keep several documents of one row apart"),
        (
            "bert",
            {
                "model._component_": "hf_models.lora_auto_model",
                "model.lora_target_modules": ["qury"],
            },
            "qury is no linear layer .* did you mean query",
        ),
        (
            "bert",
            {"model._component_": "hf_models.lora_auto_model", "model.lora_rank": 0},
            "lora_rank is 0",
        ),
        (
            "qwen3",
            {"checkpointer._component_": "torchtune.training.FullModelHFCheckpointer"},
            "checkpointer",
        ),
        ("bert", {"teacher_tokenizer": "${tokenizer}"}, "teacher_tokenizer works for causal"),
        ("bert", {"checkpointer.checkpoint_files": ["model.safetensors"]}, "checkpoint_files"),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_are_read(refusal, family, changes, words):
    line = refusal(family, changes, dry="partly" not in words and "has one" not in words)
    assert re.search(words, line), line


def test_student_and_teacher_must_be_for_one_task(refusal, directories):
    line = refusal("bert", {}, teacher=directories("t5")[0])
    assert "model is for sequence_classification, but teacher_model for seq2seq_lm" in line


ROWS = {
    "_component_": "kd_data.classification_dataset",
    "source": "json",
    "text_column": "text",
}


@pytest.mark.parametrize(
    ("rows", "changes", "words"),
    [
        (
            [{"text": "the loop ends", "label": 7}],
            {},
            "its labels go up to 7, but the model has 3 classes, from 0 to 2; set model.num_labels",
        ),
        (
            [{"text": "the loop ends " * 20, "label": 1}],
            {},
            "has 62 tokens, but the model takes 40 positions; set tokenizer.max_seq_len: 40",
        ),
        (
            [{"text": "the loop ends", "label": 1}],
            {"tokenizer": {"_component_": "own_terms.NoEncoder"}},
            "NoEncoder cannot put an encoder's markers around a text",
        ),
    ],
)
def test_data_that_the_model_cannot_take_are_refused(refusal, tmp_path, rows, changes, words):
    (tmp_path / "rows.json").write_text(json.dumps(rows * 4))
    line = refusal(
        "bert", {"dataset": ROWS | {"data_files": str(tmp_path / "rows.json")}, **changes}
    )
    assert words in line, line


def changed(directory, target, change):
    """A copy of a model's directory with another config.json."""
    target.mkdir()
    for path in directory.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((target / "config.json").read_text())
    change(config)
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_remote_code_is_never_run(refusal, directories, tmp_path):
    def ask(config):
        config |= {"model_type": "mymodel", "auto_map": {"AutoConfig": "code.Config"}}

    student = changed(directories("bert")[1], tmp_path / "remote", ask)
    (student / "code.py").write_text("raise SystemExit('was run')")
    line = refusal("bert", {}, student=student, dry=True)
    assert "'mymodel' is remote code (auto_map), which is never run" in line


def test_more_blocks_in_the_files_than_the_config_says_are_refused(refusal, directories, tmp_path):
    def shorten(config):
        config["num_hidden_layers"] = 1

    student = changed(directories("bert")[1], tmp_path / "short", shorten)
    assert "unexpected tensor bert.encoder.layer.1" in refusal(
        "bert", {}, student=student, dry=True
    )


def test_fewer_blocks_are_refused_too(refusal, directories, tmp_path):
    def lengthen(config):
        config["num_hidden_layers"] = 3

    student = changed(directories("bert")[1], tmp_path / "long", lengthen)
    line = refusal("bert", {}, student=student, dry=True)
    assert re.search(r"tensor bert.encoder.layer.2.\S+ is missing \(and \d+ more\)", line)


def test_a_teacher_without_a_trained_head_is_refused(refusal, directories, tmp_path):
    bare = tmp_path / "bare"
    transformers.BertModel.from_pretrained(directories("bert")[0]).save_pretrained(bare)
    families.save_word_tokenizer(bare)
    changes = {"teacher_model.task": "sequence_classification", "teacher_model.num_labels": 3}
    line = refusal("bert", changes, teacher=bare, dry=True)
    assert "has no classifier.bias, classifier.weight" in line
    assert "a teacher must be trained" in line


def test_a_student_gets_a_new_head_by_seed_and_says_so(tune_run, directories, tmp_path):
    bare = tmp_path / "bare"
    transformers.BertModel.from_pretrained(directories("bert")[1]).save_pretrained(bare)
    families.save_word_tokenizer(bare, token_types=True)
    cfg = family_config(tmp_path, "bert", directories("bert")[0], bare)
    cfg["model"] |= {"task": "sequence_classification", "num_labels": 3}
    OmegaConf.save(OmegaConf.create(cfg), tmp_path / "run.yaml")
    heads = []
    for number, seed in enumerate((1, 1, 2)):
        changes = (f"output_dir={tmp_path / f'run{number}'}", f"seed={seed}", "optimizer.lr=0")
        code, out, err = tune_run("kd_single_device", tmp_path / "run.yaml", *changes)
        assert code == 0, err
        assert "has no classifier.bias, classifier.weight: initialised at random, by seed" in out
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            tmp_path / f"run{number}" / "epoch_0"
        )
        heads.append(model.classifier.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_blocks_that_run_more_than_once_are_refused(refusal, tmp_path):
    """ALBERT has one block for all of its layers."""
    config = transformers.AlbertConfig(
        vocab_size=families.VOCABULARY, hidden_size=16, embedding_size=16, num_hidden_layers=3,
        num_attention_heads=2, intermediate_size=16, num_labels=3,
    )  # fmt: skip
    model = transformers.AlbertForSequenceClassification(config)
    model.save_pretrained(tmp_path / "albert")
    families.save_word_tokenizer(tmp_path / "albert")
    line = refusal("bert", {}, student=tmp_path / "albert", dry=True)
    assert "its config says 3 blocks in the encoder, but it has no list of so many" in line


def test_logits_that_the_head_does_not_give_are_refused_by_the_proof(
    refusal, directories, monkeypatch
):
    """A scale that no config tells of."""
    kind = transformers.GPT2LMHeadModel
    forward = kind.forward

    def scaled(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits * 1.5
        return output

    monkeypatch.setattr(kind, "forward", scaled)
    line = refusal("gpt2", {})
    said = r"config: model: GPT2LMHeadModel cannot be used: its own logits differ by \S+ from its"
    assert re.search(said, line), line


def test_a_model_that_sees_later_tokens_is_refused_by_the_proof(refusal, monkeypatch):
    block = transformers.models.gpt2.modeling_gpt2.GPT2Block
    forward = block.forward

    def mixed(self, hidden_states, *args, **kwargs):
        return forward(self, hidden_states + hidden_states.mean(1, keepdim=True), *args, **kwargs)

    monkeypatch.setattr(block, "forward", mixed)
    assert "earlier positions see later tokens" in refusal("gpt2", {})


def test_a_model_that_mixes_packed_documents_is_refused_by_the_proof(
    refusal, directories, monkeypatch
):
    """One whose forward takes positions, but whose attention takes no notice of them."""
    packed = {
        "dataset": {
            "_component_": "kd_data.prompt_completion_dataset",
            "data_files": str(directories("mistral")[0].parent / "rows.jsonl"),
            "packed": True,
        },
        "tokenizer.max_seq_len": 32,
    }
    rows = [{"prompt": "the loop runs until its", "completion": " condition is false"}] * 16
    path = directories("mistral")[0].parent / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(
        "transformers.masking_utils.find_packed_sequence_indices",
        lambda position_ids, *_, **__: torch.zeros_like(position_ids),
    )
    assert "does not keep the documents of a packed row apart" in refusal("mistral", packed)


def test_every_family_has_a_task():
    assert {family.task for family in FAMILIES.values()} == {
        "causal_lm",
        "seq2seq_lm",
        "sequence_classification",
    }
