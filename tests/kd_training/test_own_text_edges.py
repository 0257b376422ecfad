"""Ends, rooms, packs: what a student's own text may come to."""

import json

import pytest
import tiny
import torch
from omegaconf import OmegaConf

from hf_models import init_student
from hf_models.ends import end_tokens, write_end_tokens

WRITES = {"max_new_tokens": 12, "prompt_tokens": 5, "val_prompts": 0}
VOCABULARY = 320


@pytest.fixture
def make_own(tiny_run, tmp_path, load_run):
    """Loads a run whose student ends its texts with these tokens."""

    def make(ends=None, teachers=None, **changes):
        cfg = OmegaConf.create(tiny_run.config(tmp_path) | {"on_policy": dict(WRITES)})
        for who, ids, keys in (
            ("student", ends, ("model", "checkpointer")),
            ("teacher", teachers, ("teacher_model", "teacher_checkpointer")),
        ):
            directory = tmp_path / who
            if ids is not None:
                copy(tiny_run.directories[who], directory)
                write_end_tokens(directory, ids)
                for key in keys:
                    cfg[key].checkpoint_dir = str(directory)
        for key, value in changes.items():
            OmegaConf.update(cfg, key.replace("__", "."), value, merge=False, force_add=True)
        return load_run(cfg)

    return make


def copy(source, target):
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())


def completions(loaded, epoch=0):
    """What the student writes in the first step, and that step's batches."""
    source = loaded.run.source
    given = next(source.given.steps(epoch))
    batches, written = source._completed(given, epoch)
    return [one.tokens.tolist() for one in written], batches


def test_ends_that_differ_are_told_and_all_of_them_end_a_text(make_own):
    own, theirs = set(range(0, VOCABULARY, 8)), set(range(4, VOCABULARY, 8))
    loaded = make_own(own, theirs, optimizer__lr=0.0)
    (note,) = [one for one in loaded.run.warnings if "ends a text" in one]
    assert "(8)" in note
    assert "(12)" in note
    texts, _ = completions(loaded)
    assert {text[-1] for text in texts if len(text) < 12} <= own | theirs
    assert any(len(text) < 12 for text in texts)
    assert not any(token in own | theirs for text in texts for token in text[:-1])
    loaded.train()
    exported = loaded.run.records.directory / "epoch_0"
    assert end_tokens(exported) == own | theirs


def test_the_same_ends_need_no_word(make_own):
    loaded = make_own({2, 7}, {2, 7})
    assert not any("ends a text" in one for one in loaded.run.warnings)


def test_no_end_at_all_is_told(make_own):
    loaded = make_own([], [])
    assert any("no file of student or teacher names an end" in one for one in loaded.run.warnings)


def test_a_student_that_ends_at_once(make_own):
    loaded = make_own(range(VOCABULARY))
    texts, batches = completions(loaded)
    assert [len(text) for text in texts] == [1] * 4
    values = loaded.step(batches, 1)
    assert values["num_tokens"] == 4
    assert values["kd"] > 0


@pytest.mark.parametrize("room", [0, 2])
def test_a_prompt_that_leaves_little_room(tiny_run, tmp_path, make_own, room):
    limit = 20
    narrow = tmp_path / "short"
    init_student(tiny_run.directories["teacher"], narrow, num_layers=2)
    raw = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps(raw | {"max_position_embeddings": limit}))
    loaded = make_own(
        model__checkpoint_dir=str(narrow),
        checkpointer__checkpoint_dir=str(narrow),
        tokenizer__max_seq_len=limit,
        on_policy__prompt_tokens=limit - room,
    )
    for given in loaded.run.source.given.steps(0):
        batches, written = loaded.run.source._completed(given, 0)
        for one in written:
            assert len(one.tokens) <= min(12, limit - len(one.prompt.tokens))
        full = [one for one in written if len(one.prompt.tokens) == limit - room]
        assert all(len(one.tokens) == 0 for one in full) if room == 0 else full
        labels = sum(len(one.tokens) for one in written)
        assert loaded.step(batches, 1)["num_tokens"] == labels


def test_a_step_in_which_nothing_can_be_written_changes_nothing(make_own, tmp_path):
    texts = tiny.save_texts(tmp_path / "long.jsonl", [" ".join(tiny.SENTENCES * 2)] * 4)
    dataset = {
        "_component_": "kd_data.prompt_completion_dataset",
        "data_files": str(texts),
        "prompt_column": "text",
        "completion_column": None,
    }
    loaded = make_own(
        dataset=dataset,
        on_policy__prompt_tokens=None,
        tokenizer__max_seq_len=128,
        optimizer={"_component_": "torch.optim.SGD", "lr": 1.0},
    )
    before = [p.detach().clone() for p in loaded.step.parameters]
    texts, batches = completions(loaded)
    assert texts == [[]] * 4
    values = loaded.step(batches, 1)
    assert values["num_tokens"] == values["kd"] == values["grad_norm"] == 0
    assert all(torch.equal(a, b) for a, b in zip(before, loaded.step.parameters, strict=True))


def test_several_completions_of_a_prompt(make_own):
    loaded = make_own(on_policy__num_completions=2)
    texts, batches = completions(loaded)
    assert len(texts) == 8
    assert len(batches) == 4
    assert all(first != second for first, second in zip(texts[:4], texts[4:], strict=True))
    assert loaded.step(batches, 1)["num_tokens"] == sum(map(len, texts))


def test_prompts_are_completed_a_few_at_a_time(make_own, tmp_path):
    loaded = make_own()
    texts, _ = completions(loaded)
    for size in (1, 3):
        loaded.run.source._completed.writer.batch_size = size
        assert completions(loaded)[0] == texts


def test_another_epoch_has_other_completions(make_own):
    loaded = make_own(shuffle=False)
    assert completions(loaded, 0)[0] != completions(loaded, 1)[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset__packed": True, "dataset__split_across_pack": False, "batch_size": 1},
        {"group_by_length": True},
        {"num_workers": 1},
        {"dtype": "bf16"},
        {"model__use_dora": True},
        {"model__lora_dropout": 0.3},
    ],
)
def test_other_data_and_models_are_served(make_own, changes):
    loaded = make_own(**changes)
    loaded.train()
    lines = (loaded.run.records.directory / "logs" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert steps
    assert all(step["kd"] > 0 and step["generated_length"] > 0 for step in steps)


def test_a_pack_s_documents_are_prompts_of_their_own(make_own):
    packs = make_own(dataset__packed=True, dataset__split_across_pack=False, batch_size=1)
    written = [
        (one.prompt.tokens.tolist(), one.tokens.tolist())
        for given in packs.run.source.given.steps(0)
        for one in packs.run.source._completed(given, 0)[1]
    ]
    alone = make_own(output_dir=str(packs.run.records.directory) + "_alone")
    expected = [
        (one.prompt.tokens.tolist(), one.tokens.tolist())
        for given in alone.run.source.given.steps(0)
        for one in alone.run.source._completed(given, 0)[1]
    ]
    assert len(written) > 2
    assert all(one in expected for one in written)
