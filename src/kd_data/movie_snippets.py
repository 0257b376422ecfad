"""Sentences of film reviews with their sentiment, from the Python package index.

    python -m kd_data.movie_snippets --output data/movie_snippets

The source archive of ``vaderSentiment`` 0.5 (MIT) holds 10,605 snippets of the film reviews of Pang
& Lee (2004), each with the mean of at least 20 people's ratings from -4 to 4 (Hutto & Gilbert,
ICWSM 2014): the kind of text that SST-2 is. What this writes is the same on every machine:

    train.jsonl     {"text", "label"}: 8,543 snippets rated beyond ±0.5; 1 is positive, 0 negative
    heldout.jsonl   1,500 others
    SOURCE          where they are from
"""

import argparse
import io
import json
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from hf_models.directories import atomic_directory
from hf_models.pip_download import download

DEFAULT_OUTPUT = Path("data/movie_snippets")
REQUIREMENT = "vaderSentiment==0.5"
ARCHIVE_SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
INNER = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
TABLE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
TABLE_SHA256 = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"
FILES = ("train.jsonl", "heldout.jsonl", "SOURCE")
_CLEAR, _HELD_OUT = 0.5, 1500
_SOURCE = f"""{REQUIREMENT} of the Python package index, MIT licence: {TABLE}.
Sentences from rotten.tomatoes.com of the 2000 film reviews of Pang & Lee (2004), rated by people:
C.J. Hutto, E.E. Gilbert: VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social
Media Text, ICWSM-14. Kept: mean ratings beyond ±{_CLEAR}; label 1 is positive.
"""


def write_movie_snippets(output_dir: str | Path = DEFAULT_OUTPUT) -> Path:
    """Download and write the snippets, or leave them as they are if they are there already.

    Raises:
        ConnectionError: If pip cannot download the archive.
        ValueError: If it is not the expected one.
        OSError: If ``output_dir`` holds other files, or cannot be written.
    """
    output_dir = Path(output_dir)
    if all((output_dir / name).is_file() for name in FILES):
        return output_dir
    if output_dir.exists() and not {path.name for path in output_dir.iterdir()} <= set(FILES):
        raise FileExistsError(f"{output_dir} holds other files: choose another --output")
    with atomic_directory(output_dir) as directory:
        scratch = directory / "download"
        scratch.mkdir()
        archive = download(REQUIREMENT, ARCHIVE_SHA256, scratch, kind="source")
        rows = _rows(_table(archive))
        shutil.rmtree(scratch)
        parts = {"train.jsonl": rows[_HELD_OUT:], "heldout.jsonl": rows[:_HELD_OUT]}
        for name, part in parts.items():
            (directory / name).write_text(_json_lines(part), encoding="utf-8")
        (directory / "SOURCE").write_text(_SOURCE, encoding="utf-8")
    return output_dir


def _table(archive: Path) -> str:
    with zipfile.ZipFile(archive) as outer:
        inner = io.BytesIO(outer.read(INNER))
    with tarfile.open(fileobj=inner) as files:
        member = files.extractfile(TABLE)
        content = b"" if member is None else member.read()
    if sha256(content).hexdigest() != TABLE_SHA256:
        raise ValueError(f"{TABLE} of {REQUIREMENT} is not the expected file: not using it")
    return content.decode("utf-8")


def _rows(table: str) -> list[dict[str, str | int]]:
    """The clear ones, in an order that says nothing and that any language can repeat."""
    cells = (line.split("\t") for line in table.splitlines())
    rated = [(float(rating), text.strip()) for _, rating, text in cells]
    clear = [(rating, text) for rating, text in rated if abs(rating) > _CLEAR]
    clear.sort(key=lambda row: sha256(row[1].encode()).hexdigest())
    return [{"text": text, "label": int(rating > 0)} for rating, text in clear]


def _json_lines(rows: Iterable[dict[str, str | int]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main() -> None:
    """Command line: exit code 1 and one line on stderr when the data cannot be written."""
    parser = argparse.ArgumentParser(description="Write rated sentences of film reviews.")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="target directory")
    arguments = parser.parse_args()
    try:
        directory = write_movie_snippets(arguments.output)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
    print(f"Movie snippets: {directory}")


if __name__ == "__main__":
    main()
