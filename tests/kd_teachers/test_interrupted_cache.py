"""A cache whose making is interrupted: the same call goes on, and comes to the same files."""

import itertools
import signal
from pathlib import Path

import pytest
import tiny
from processes import Processes

from kd_teachers import Live
from kd_teachers.store import shard
from kd_teachers.store.shard import Shard
from kd_teachers.store.store import Store
from kd_training.caching.run import cache_teacher

SEVERAL = {"cache.shard_mb": 30}  # files of 30 kB here


@pytest.fixture
def small_files(monkeypatch):
    monkeypatch.setattr("kd_training.caching.run._MB", 1000)


@pytest.fixture
def whole(small_files, keep):
    """The files of a call that nobody has interrupted, as bytes by name."""
    files = snapshot(keep(SEVERAL, "whole"))
    assert len(files) >= 6, "the manifest, the head and several parts"
    return files


def snapshot(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


class Killed(BaseException):
    """Nobody catches it."""


class Power:
    """Fails instead of some change of the disk, or question to the teacher, by number.

    A file that is being written is left half. Nothing changes any more after that, whatever Python
    still does on its way out.
    """

    def __init__(self, monkeypatch, at):
        self.at, self.count, self.off = at, 0, False
        self._patch = monkeypatch
        self._guard(
            Path, "write_text", lambda do, path, text, **_: do(path, text[: len(text) // 2])
        )
        self._guard(shard, "save_file", self._half)
        for owner, name in ((Path, "replace"), (Path, "unlink"), (Path, "rmdir"), (Live, "signal")):
            self._guard(owner, name, lambda *_, **__: None)

    def _half(self, save, tensors, path):
        save(tensors, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def _guard(self, owner, name, last):
        original = getattr(owner, name)

        def guarded(*args, **kwargs):
            if self.off:
                return None
            self.count += 1
            if self.count < self.at:
                return original(*args, **kwargs)
            last(original, *args, **kwargs)
            self.off = True
            raise Killed

        self._patch.setattr(owner, name, guarded)


def interrupted(keep, where, at):
    """Make a cache until the power fails; whether it did."""
    with pytest.MonkeyPatch.context() as patch:
        power = Power(patch, at)
        try:
            keep(SEVERAL, where)
        except Killed:
            assert power.off
    return power.off


def shards(directory):
    """Keys in each file that is there."""
    return {path: Shard(path).documents() for path in directory.glob("part-*")}


def test_killed_at_any_moment_it_goes_on_to_the_same_files(whole, keep, tmp_path, monkeypatch):
    asked = []
    answer = Live.signal

    def noted(self, batch, needs):
        asked.extend(map(tuple, batch.sample_keys.tolist()))
        return answer(self, batch, needs)

    for at in itertools.count(1):
        directory = tmp_path / f"killed_{at}"
        if not interrupted(keep, directory.name, at):
            break
        before = shards(directory)
        times = {path: path.stat().st_mtime_ns for path in before}
        with monkeypatch.context() as patch:
            patch.setattr(Live, "signal", noted)
            asked.clear()
            keep(SEVERAL, directory.name)
        assert snapshot(directory) == whole, at
        assert {path: path.stat().st_mtime_ns for path in times} == times, at
        known = {key for keys in before.values() for key in keys}
        assert known.isdisjoint(asked), at
        assert len(known) + len(asked) == 8, at
    # Three moments of each file (asked, half written, without its name), two of the manifest.
    assert at > 3 * (len(whole) - 2)


def test_killed_in_every_call_it_still_comes_to_an_end(whole, keep, tmp_path):
    """Each call gets as far as one more file."""
    calls = 0
    while interrupted(keep, "cache", at=8):
        calls += 1
        assert calls < 20
    assert calls >= 3
    assert snapshot(tmp_path / "cache") == whole


def test_files_of_another_size_lose_no_text(whole, keep, tmp_path, teach):
    """What is there stays; the other texts come in files of the new size."""
    assert interrupted(keep, "cache", at=15)
    before = shards(tmp_path / "cache")
    assert before
    # As many files as before, cut elsewhere, or another number of them.
    for number, size in enumerate((34, 60)):
        directory = tmp_path / f"cache_{number}"
        directory.mkdir()
        for name, content in snapshot(tmp_path / "cache").items():
            (directory / name).write_bytes(content)
        keep({"cache.shard_mb": size}, directory.name)
        keys = [key for one in shards(directory).values() for key in one]
        assert len(keys) == len(set(keys)) == len(Store(directory)) == 8
        assert all((directory / path.name).read_bytes() == path.read_bytes() for path in before)
        kept = teach({"teacher_cache": str(directory)}, f"kept_{number}")
        assert kept == teach(where=f"live_{number}")


@pytest.mark.parametrize("name", ["part-000-00001.safetensors", "head.safetensors"])
def test_a_file_that_was_removed_is_made_again(name, whole, keep, tmp_path, teach):
    directory = keep(SEVERAL)
    (directory / name).unlink()
    with pytest.raises(ValueError, match=f"{name}.*delete it.*run kd_cache_teacher again"):
        teach({"teacher_cache": str(directory)})
    keep(SEVERAL)
    assert len(Store(directory)) == 8
    unchanged = whole.keys() - {name, "manifest.json"}
    assert {n: snapshot(directory)[n] for n in unchanged} == {n: whole[n] for n in unchanged}
    if name.startswith("head"):
        assert snapshot(directory) == whole
    assert teach({"teacher_cache": str(directory)}, "kept") == teach(where="live")


MOMENTS = [
    ("kd_training.caching.run.write_manifest", 1),
    ("kd_teachers.store.shard.save_file", 3),  # head, a file, and in the second one
    ("kd_teachers.store.shard.give_usual_mode", 2),  # written, but not yet at its place
    ("kd_training.caching.run.finish", 1),
]


@pytest.mark.slow
def test_kill_9(tiny_run, tmp_path):
    """Real files of the smallest size that a config can ask for."""
    texts = [f"{number}. {text}" for number in range(20) for text in tiny.SENTENCES]
    config = tiny_run.config(tmp_path) | {"cache": {"shard_mb": 1}}
    config["dataset"] |= {"data_files": str(tiny.save_texts(tmp_path / "texts.jsonl", texts))}
    processes = Processes(tmp_path / "log.txt")

    def run(name, **options):
        directory = tmp_path / name
        code = processes.finish(
            config | {"cache_dir": str(directory)}, work=cache_teacher, **options
        )
        return code, directory

    code, directory = run("whole")
    assert code == 0, processes.text()
    expected = snapshot(directory)
    assert len(expected) == 5
    for where, at in MOMENTS:
        name = where.rpartition(".")[2]
        code, directory = run(name, killed_in=where, killed_at=at)
        assert code == -signal.SIGKILL
        assert (directory / ".lock").exists(), "no word was said at the end"
        assert run(name)[0] == 0, processes.text()
        assert snapshot(directory) == expected, where
