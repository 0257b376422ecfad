import hashlib
import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from kd_data import movie_snippets
from kd_data.movie_snippets import write_movie_snippets

# Of what the archive holds: a rating beyond half a point, and texts with letters of their own.
TABLE = (
    "1\t2.25\tA splash.\r\n2\t-0.51\tA clich\u00e9 \u2013 and a dull one.\r\n3\t0.5\tNeither.\r\n"
    "4\t-3.9\tAwful.\r\n5\t0\tThere is a film.\r\n6\t0.6\t Fine. "
)
CLEAR = {"A splash.": 1, "A cliché – and a dull one.": 0, "Awful.": 0, "Fine.": 1}
# The same on every machine and with every version of Python.
SHA256 = {
    "train": "b7d4ac15b117d4bc0d1fde75e71decd904539c9a2a4636a89b47bd582532627c",
    "heldout": "d2c4acbb7b7ab5d17b13544ee01e39660c9b4ede6bf93f4e15905cf8fb169375",
}


@pytest.fixture
def archive(tmp_path, monkeypatch) -> Path:
    """What pip would download, with a short table in it."""
    table = TABLE.encode()
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as files:
        member = tarfile.TarInfo(movie_snippets.TABLE)
        member.size = len(table)
        files.addfile(member, io.BytesIO(table))
    with zipfile.ZipFile(tmp_path / "source.zip", "w") as outer:
        outer.writestr(movie_snippets.INNER, inner.getvalue())
    monkeypatch.setattr(movie_snippets, "download", lambda *_, **__: tmp_path / "source.zip")
    monkeypatch.setattr(movie_snippets, "TABLE_SHA256", hashlib.sha256(table).hexdigest())
    monkeypatch.setattr(movie_snippets, "_HELD_OUT", 1)
    return tmp_path / "source.zip"


@pytest.fixture
def fails(tmp_path, monkeypatch):
    """Runs the command line and returns stderr's one line."""

    def run() -> str:
        monkeypatch.setattr(sys, "argv", ["movie_snippets", "--output", str(tmp_path / "data")])
        with pytest.raises(SystemExit) as exit_info:
            movie_snippets.main()
        assert isinstance(exit_info.value.code, str)
        assert "\n" not in exit_info.value.code
        return exit_info.value.code

    return run


def rows(directory: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (directory / f"{name}.jsonl").read_text().splitlines()]


def test_clear_ratings_become_labels(archive, tmp_path):
    directory = write_movie_snippets(tmp_path / "data")
    train, heldout = rows(directory, "train"), rows(directory, "heldout")
    assert (len(train), len(heldout)) == (3, 1)
    assert {row["text"]: row["label"] for row in train + heldout} == CLEAR
    assert {path.name for path in directory.iterdir()} == set(movie_snippets.FILES)


def test_another_table_is_refused(archive, fails, tmp_path, monkeypatch):
    monkeypatch.setattr(movie_snippets, "TABLE_SHA256", "0" * 64)
    assert "is not the expected file: not using it" in fails()
    assert not (tmp_path / "data").exists()


def test_nothing_to_download(local_index, fails, tmp_path):
    line = fails()
    assert "could not download vaderSentiment==0.5 (No matching distribution" in line
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_an_interrupted_download_leaves_nothing_behind(fails, tmp_path, monkeypatch):
    def download(*_: object, **__: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(movie_snippets, "download", download)
    assert fails() == "interrupted"
    assert list(tmp_path.iterdir()) == []


def test_foreign_files_are_left_alone(fails, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("mine")
    assert "holds other files: choose another --output" in fails()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["thesis.txt"]


def test_second_call_reuses_the_directory(movie_snippets_dir, monkeypatch):
    monkeypatch.setattr(movie_snippets, "download", lambda *_, **__: pytest.fail("downloaded"))
    assert write_movie_snippets(movie_snippets_dir) == movie_snippets_dir


@pytest.mark.parametrize(("name", "size"), [("train", 8543), ("heldout", 1500)])
def test_the_same_rows_everywhere(movie_snippets_dir, name, size):
    file = movie_snippets_dir / f"{name}.jsonl"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == SHA256[name]
    found = rows(movie_snippets_dir, name)
    assert len(found) == size
    assert all(row.keys() == {"text", "label"} for row in found)
    assert 0.4 < sum(row["label"] for row in found) / size < 0.6


def test_nothing_is_on_both_sides(movie_snippets_dir):
    train, heldout = (
        {" ".join(row["text"].lower().split()) for row in rows(movie_snippets_dir, name)}
        for name in ("train", "heldout")
    )
    assert not train & heldout


def test_the_source_is_named(movie_snippets_dir):
    text = (movie_snippets_dir / "SOURCE").read_text()
    for words in ("vaderSentiment==0.5", "MIT", "rotten.tomatoes.com", "Pang & Lee (2004)"):
        assert words in text
