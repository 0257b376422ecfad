"""A cache that is another teacher's, about other texts, or no cache at all, is refused by name."""

import json
import shutil
from collections import namedtuple

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from kd_teachers.store.manifest import FILE


@pytest.fixture
def own_teacher(tiny_run, tmp_path):
    """A copy of the teacher to change, and the keys that name it."""
    directory = shutil.copytree(tiny_run.directories["teacher"], tmp_path / "own")
    keys = ("teacher_model", "teacher_checkpointer", "tokenizer")
    return directory, {f"{key}.checkpoint_dir": str(directory) for key in keys}


def other_weights(directory):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1
    save_file(tensors, path, metadata={"format": "pt"})


def other_template(directory):
    for path in directory.glob("chat_template*"):
        path.write_text(path.read_text() + " ")
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text())
    if "chat_template" in config:
        config["chat_template"] += " "
        path.write_text(json.dumps(config))


def other_tokenizer(directory):
    path = directory / "tokenizer.json"
    path.write_text(path.read_text() + "\n")


CHANGES = {
    "another teacher: its weights .model.safetensors. are not those of own": other_weights,
    "another chat template": other_template,
    "another tokenizer .tokenizer.json.": other_tokenizer,
}


@pytest.mark.parametrize("message", CHANGES)
def test_another_teacher_or_tokenizer(message, own_teacher, teach, keep, tmp_path):
    directory, keys = own_teacher
    cache = keep(keys)
    CHANGES[message](directory)
    with pytest.raises(ValueError, match=f"teacher_cache .*{message}"):
        teach(keys | {"teacher_cache": str(cache)})
    with pytest.raises(ValueError, match=f"cache_dir .*{message}"):
        keep(keys)
    assert not (tmp_path / "out").exists()


def test_the_same_teacher_in_fewer_bits_is_another(teach, keep):
    cache = keep()
    config = {"_component_": "torchao.quantization.Int8WeightOnlyConfig"}
    with pytest.raises(ValueError, match="another teacher: quantization was None"):
        teach({"teacher_cache": str(cache), "teacher_quantization": config})


def test_a_text_that_nobody_has_read(teach, keep, tmp_path):
    cache = keep()
    texts = tiny.save_texts(tmp_path / "more.jsonl", [*tiny.SENTENCES, "A text of its own."])
    more = {"dataset.data_files": str(texts)}
    with pytest.raises(ValueError, match="config: dataset: sample 8: the teacher has not read"):
        teach(more | {"teacher_cache": str(cache)})
    keep(more)
    assert len(teach(more | {"teacher_cache": str(cache)})) == 2


def test_a_teacher_that_is_gone_is_taken_at_its_word(own_teacher, teach, keep, capsys, tiny_run):
    directory, keys = own_teacher
    keys.pop("tokenizer.checkpoint_dir")
    live = teach(keys, "live")
    cache = keep(keys)
    shutil.rmtree(directory)
    assert teach({**keys, "teacher_cache": str(cache)}, "kept") == live
    assert "is taken at its word" in capsys.readouterr().out
    gone = {"teacher_model": None, "teacher_checkpointer": None, "teacher_cache": str(cache)}
    assert teach(gone, "without") == live


def damaged(path):
    path.write_bytes(path.read_bytes()[:-10])


def unfinished(path):
    manifest = json.loads(path.read_text())
    manifest["parts"][-1]["done"] = False
    path.write_text(json.dumps(manifest))


def of_another_version(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))


BROKEN = {
    "not a complete file of a cache": ("part-000-00000.safetensors", damaged),
    "is not finished": (FILE, unfinished),
    "version 99": (FILE, of_another_version),
    "no manifest of a teacher's cache": (FILE, lambda path: path.write_text("{}")),
    "no such file": (FILE, lambda path: path.unlink()),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_directory_that_is_no_whole_cache(message, teach, keep, tmp_path):
    cache = keep()
    name, spoil = BROKEN[message]
    spoil(cache / name)
    with pytest.raises((ValueError, OSError), match=message) as refusal:
        teach({"teacher_cache": str(cache)})
    assert len(str(refusal.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_where_to_write_must_be_said_and_free(keep, tmp_path):
    with pytest.raises(ValueError, match="cache_dir is not set"):
        keep({"cache_dir": None})
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other things than a teacher's cache"):
        keep()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["thesis.txt"]


def test_a_disk_that_is_too_small(keep, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(ValueError, match=r"needs .* GB, but .* GB are free"):
        keep()
    assert not (tmp_path / "cache").exists()


def test_other_settings_need_another_directory(keep):
    keep()
    with pytest.raises(ValueError, match="keeps final hidden states and 2 layers"):
        keep({"cache": {"logits": "top_k", "k": 8}})


def test_a_cache_of_another_type_is_used_with_a_warning(teach, keep, capsys):
    cache = keep()
    teach({"teacher_cache": str(cache), "dtype": "bf16"})
    assert "was made in float32, this run computes in bfloat16" in capsys.readouterr().out
    assert torch.get_default_dtype() == torch.float32
