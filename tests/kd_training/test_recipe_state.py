"""Checkpoints: whole or absent, and never trusted without their hashes."""

import errno
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_training import OneDevice
from kd_training.checkpoint import files
from kd_training.checkpoint.facts import read_facts
from kd_training.checkpoint.files import Checkpoints, has_exported, newest_state, note_export
from kd_training.checkpoint.tensors import load_tensors
from kd_training.output.directory import mend

HERE = OneDevice("cpu")


def tensors_of(step):
    generator = torch.Generator().manual_seed(step)
    return {
        "model.a": torch.randn(3, 4, generator=generator),
        "model.half": torch.randn(5, generator=generator).bfloat16(),
        "optimizer.state.a.step": torch.tensor(float(step)),
        "optimizer.count": torch.tensor([step, 2**40]),
    }


def save(root, step, keep_last_n=2, checkpoints=None):
    """As a run that has just gone on among the checkpoints that are there, unless one is given."""
    checkpoints = checkpoints or Checkpoints(root, keep_last_n)
    checkpoints.save(step, tensors_of(step), {"step": step, "lr": 0.1}, HERE)
    return checkpoints.newest


def steps(root):
    return sorted(int(p.name.removeprefix("step_")) for p in (root / "recipe_state").glob("step_*"))


def check_content(folder, step):
    assert read_facts(folder) == {"step": step, "lr": 0.1}
    loaded = {name: torch.zeros_like(tensor) for name, tensor in tensors_of(step).items()}
    load_tensors(folder, loaded, HERE)
    for name, tensor in tensors_of(step).items():
        assert torch.equal(loaded[name], tensor), name


def test_what_is_saved_comes_back_and_only_the_newest_stay(tmp_path):
    for step in (8, 9, 10, 11):
        save(tmp_path, step)
    assert steps(tmp_path) == [10, 11], "by number, not by name"
    newest, warnings = newest_state(tmp_path)
    assert (newest, warnings) == (tmp_path / "recipe_state" / "step_11", [])
    check_content(newest, 11)
    assert [p.name for p in (tmp_path / "recipe_state").iterdir() if p.name.startswith(".")] == []


def test_no_checkpoint_is_no_mistake(tmp_path):
    assert newest_state(tmp_path) == (None, [])
    (tmp_path / "recipe_state").mkdir()
    assert newest_state(tmp_path) == (None, [])


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


def files_of(pattern):
    return lambda folder: next(folder.glob(pattern))


DAMAGE = {
    "truncated tensors": (files_of("*.safetensors"), truncate),
    "flipped tensors": (files_of("*.safetensors"), flip),
    "missing tensors": (files_of("*.safetensors"), Path.unlink),
    "truncated facts": (files_of("state.json"), truncate),
    "flipped facts": (files_of("state.json"), flip),
    "missing facts": (files_of("state.json"), Path.unlink),
    "truncated manifest": (files_of("manifest.json"), truncate),
    "missing manifest": (files_of("manifest.json"), Path.unlink),
    "empty manifest": (files_of("manifest.json"), lambda path: path.write_text("{}")),
    "manifest of another kind": (files_of("manifest.json"), lambda path: path.write_text("[1]")),
    "binary manifest": (files_of("manifest.json"), lambda path: path.write_bytes(b"\xff\xfe{")),
    "nothing in it": (lambda folder: folder, empty),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_the_one_before_a_damaged_one_is_taken(tmp_path, case):
    find, damage = DAMAGE[case]
    save(tmp_path, 1)
    damaged = save(tmp_path, 2)
    damage(find(damaged))
    newest, warnings = newest_state(tmp_path)
    assert newest is not None
    check_content(newest, 1)
    (warning,) = warnings
    assert str(damaged) in warning
    assert "damaged" in warning
    assert "\n" not in warning


def test_nothing_but_damaged_ones_is_one_clear_line(tmp_path):
    for step in (1, 2):
        truncate(next(save(tmp_path, step).glob("*.safetensors")))
    with pytest.raises(ValueError, match=r"^resume_from_checkpoint: .* is intact .*=false.*$"):
        newest_state(tmp_path)
    assert steps(tmp_path) == [1, 2], "they are left for a person to look at"


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    return save(tmp_path_factory.mktemp("once"), 3)


@settings(max_examples=60)
@given(data=st.data())
def test_any_flipped_bit_is_noticed_or_changes_nothing(saved_once, data):
    path = data.draw(st.sampled_from(sorted(saved_once.iterdir())))
    original = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(original) - 1))
    changed = bytearray(original)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    try:
        newest, _ = newest_state(saved_once.parents[1])
    except ValueError:
        return
    else:
        # Blanks between the manifest's entries may become others.
        assert path.name == "manifest.json"
        assert json.loads(changed) == json.loads(original)
        check_content(newest, 3)
    finally:
        path.write_bytes(original)


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["_describe_files", "dcp.save", "Path.write_text", "Path.rename"])
def test_a_failed_save_leaves_the_earlier_ones_and_nothing_else(tmp_path, monkeypatch, where):
    save(tmp_path, 1)
    save(tmp_path, 2)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(f"kd_training.checkpoint.files.{where}", no_space)
        with pytest.raises(OSError, match=r"^checkpoint .*step_3 could not be written: .*No space"):
            save(tmp_path, 3)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert steps(tmp_path) == [1, 2]
    save(tmp_path, 3)
    check_content(newest_state(tmp_path)[0], 3)


def test_a_run_that_went_back_keeps_its_own_checkpoints(tmp_path):
    """Later ones, damaged or not, are of a run that is given up: they must not crowd it out."""
    for step in (4, 8):
        save(tmp_path, step)
    truncate(next((tmp_path / "recipe_state" / "step_8").glob("*.safetensors")))
    save(tmp_path, 5, keep_last_n=1)
    assert steps(tmp_path) == [5]
    assert newest_state(tmp_path) == (tmp_path / "recipe_state" / "step_5", [])


def test_a_replacement_that_was_killed_halfway_loses_nothing(tmp_path):
    folder = save(tmp_path, 4, keep_last_n=1)
    folder.rename(folder.with_name(".step_4.previous"))
    shutil.copytree(folder.with_name(".step_4.previous"), folder.with_name(".step_4.partial"))
    mend(tmp_path)
    assert [p.name for p in folder.parent.iterdir()] == ["step_4"]
    assert newest_state(tmp_path) == (folder, [])
    check_content(folder, 4)


def test_checkpoints_of_somebody_else_are_never_removed(tmp_path):
    """As on a file system without locks: another run saves beside this one, earlier and later."""
    ours = Checkpoints(tmp_path, keep_last_n=1)
    save(tmp_path, 2, checkpoints=ours)
    others = Checkpoints(tmp_path / "elsewhere", keep_last_n=9)
    for step in (1, 9):
        save(tmp_path / "elsewhere", step, checkpoints=others).rename(
            tmp_path / "recipe_state" / f"step_{step}"
        )
    save(tmp_path, 3, checkpoints=ours)
    assert steps(tmp_path) == [1, 3, 9]


def test_what_a_person_is_told_to_do_can_be_done(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep_last_n=2)
    assert "resume_from_checkpoint" not in checkpoints.way_on()
    assert "no checkpoint to resume from" in checkpoints.way_on()
    saved = save(tmp_path, 1, checkpoints=checkpoints)
    monkeypatch.setattr("kd_training.checkpoint.files.dcp.save", no_space)
    with pytest.raises(OSError, match="earlier ones are untouched"):
        save(tmp_path, 2, checkpoints=checkpoints)
    assert checkpoints.way_on().endswith(f"resume_from_checkpoint=true to go on from {saved}")


def test_an_export_is_noted_with_the_checkpoint_that_owed_it(tmp_path):
    """A new one at its place owes anew."""
    folder = save(tmp_path, 4)
    assert not has_exported(folder)
    note_export(folder)
    assert has_exported(folder)
    assert newest_state(tmp_path) == (folder, [])
    check_content(folder, 4)
    assert not has_exported(save(tmp_path, 4))


def test_reading_opens_no_pickle(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def refuse(*_, **__):
        raise AssertionError("a pickle was opened")

    for name in ("load", "loads", "Unpickler", "_Unpickler", "_load", "_loads"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(AssertionError, match="a pickle"):
        pickle.loads(b"")
    check_content(newest_state(tmp_path)[0], 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors | {"model.a": torch.zeros(4, 4)}, ["model.a", "[4, 4]"]),
        (lambda tensors: tensors | {"model.new": torch.zeros(2)}, ["model.new"]),
        (lambda tensors: {"model.a": tensors["model.a"]}, ["model.half", "no place"]),
    ],
)
def test_a_checkpoint_of_another_model_is_named(tmp_path, change, words):
    folder = save(tmp_path, 1)
    with pytest.raises(ValueError, match=r"^resume_from_checkpoint: .*must be those") as error:
        load_tensors(folder, change(tensors_of(1)), HERE)
    assert all(word in str(error.value) for word in [str(folder), *words]), str(error.value)
    assert "\n" not in str(error.value)


def test_hidden_and_foreign_folders_are_no_checkpoints(tmp_path):
    folder = save(tmp_path, 1)
    for name in (".step_9.partial", "step_9.bak", "step_", "step_nine"):
        shutil.copytree(folder, folder.with_name(name))
    assert newest_state(tmp_path) == (folder, [])
    assert files.STATE_DIR == "recipe_state"
