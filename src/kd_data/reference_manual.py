"""Python's language reference as data that needs no download: texts and lm_eval tasks.

    python -m kd_data.reference_manual --output data/reference_manual

The standard library carries the reference as ``pydoc_data.topics``. What this writes is the same
on every call with one version of Python; the text differs a little from version to version, so
figures are comparable only within one. In the directory:

    train.jsonl     {"topic", "text"}: passages of a few hundred tokens, for training
    heldout.jsonl   the same from other topics, for validation and perplexity
    choices.jsonl   {"topic", "context", "choices", "label"}: what follows?, from held-out text
    tasks/          manual_perplexity and manual_choice, for lm_eval's --include_path
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import yaml

from hf_models import atomic_directory
from kd_data.datasets.manual_text import passages, questions, split_topics

DEFAULT_OUTPUT = Path("data/reference_manual")


def tasks(data_dir: Path) -> dict[str, dict[str, Any]]:
    """The lm_eval tasks by name, with absolute paths, so that they run from any directory."""

    def task(name: str, file: str, metrics: Mapping[str, str], **options: Any) -> dict[str, Any]:
        return {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data_dir.resolve() / file)}},
            "test_split": "test",
            **options,
            "metric_list": [
                {"metric": metric, "aggregation": how, "higher_is_better": how == "mean"}
                for metric, how in metrics.items()
            ],
            "metadata": {"version": 1.0},
        }

    perplexity = task(
        "manual_perplexity",
        "heldout.jsonl",
        {
            "word_perplexity": "weighted_perplexity",
            "byte_perplexity": "weighted_perplexity",
            "bits_per_byte": "bits_per_byte",
        },
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
    )
    choice = task(
        "manual_choice",
        "choices.jsonl",
        {"acc": "mean", "acc_norm": "mean"},
        output_type="multiple_choice",
        doc_to_text="{{context}}",
        doc_to_choice="choices",
        doc_to_target="label",
    )
    return {"manual_perplexity": perplexity, "manual_choice": choice}


def write_reference_manual(output_dir: str | Path = DEFAULT_OUTPUT) -> Path:
    """Write texts and tasks, or leave them as they are if they are there already.

    Raises:
        OSError: If ``output_dir`` holds other files, or cannot be written.
    """
    output_dir = Path(output_dir)
    files = _files(output_dir)
    if all(_holds(output_dir / name, text) for name, text in files.items()):
        return output_dir
    ours = {name.split("/")[0] for name in files}
    if output_dir.exists() and not {path.name for path in output_dir.iterdir()} <= ours:
        raise FileExistsError(f"{output_dir} holds other files: choose another --output")
    with atomic_directory(output_dir) as directory:
        (directory / "tasks").mkdir()
        for name, text in files.items():
            (directory / name).write_text(text, encoding="utf-8")
    return output_dir


def _files(output_dir: Path) -> dict[str, str]:
    train, heldout = (
        [{"topic": topic, "text": text} for topic in side for text in passages(side[topic])]
        for side in split_topics(topics)
    )
    rows = {"train": train, "heldout": heldout, "choices": questions(heldout)}
    files = {f"{name}.jsonl": _json_lines(rows[name]) for name in rows}
    for name, task in tasks(output_dir).items():
        files[f"tasks/{name}.yaml"] = yaml.safe_dump(task, sort_keys=False)
    return files


def _json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def main() -> None:
    """Command line: exit code 1 and one line on stderr when the data cannot be written."""
    parser = argparse.ArgumentParser(description="Write the reference manual's texts and tasks.")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="target directory")
    arguments = parser.parse_args()
    try:
        directory = write_reference_manual(arguments.output)
    except OSError as error:
        sys.exit(f"error: {error}")
    print(f"Reference manual: {directory}")


if __name__ == "__main__":
    main()
