"""Data larger than memory: datasets read their files where they lie, as they are needed."""

import ctypes
import gc
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pyarrow
import pytest
import tiny
from official_tasks import write_definition
from processes import GUARD
from torchtune.datasets import text_completion_dataset

from hf_models import HFTokenizer
from kd_data import (
    classification_dataset,
    lm_eval_task,
    mixture,
    prompt_completion_dataset,
    seq2seq_dataset,
)

MB = 1e6
WARM_UP, SIZE = 20 * MB, 120 * MB
NUM_READ = 40
TASK = {
    "output_type": "generate_until",
    "training_split": "train",
    "validation_split": "train",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "{{completion}}",
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def write_rows(path: Path, size: float) -> None:
    """So many bytes of rows, each another."""
    text = " ".join(tiny.SENTENCES * 3)
    with path.open("w") as file:
        for i in range(int(size / (len(text) + 50))):
            row = {"prompt": f"{i} {text}", "completion": f" {i}.", "class": ("even", "odd")[i % 2]}
            file.write(json.dumps(row) + "\n")


def builders(root: Path, name: str) -> dict:
    """Each dataset over the rows of a file, still to be built."""
    tokenizer = HFTokenizer(root / "tokenizer", max_seq_len=64)
    file = root / f"{name}.jsonl"

    def pairs():
        return prompt_completion_dataset(tokenizer, file)

    def texts():
        options = {"source": "json", "data_files": str(file), "column": "prompt"}
        return text_completion_dataset(tokenizer, **options)

    def task():
        return lm_eval_task(tokenizer, name, include_path=root)

    def classes():
        options = {"label_column": "class", "labels": ["even", "odd"], "data_files": str(file)}
        return classification_dataset(tokenizer, "json", "prompt", **options)

    def targets():
        return seq2seq_dataset(tokenizer, "json", "prompt", "completion", data_files=str(file))

    def mixed():
        return mixture(tokenizer, [pairs(), task()], [1, 1])

    return {
        "pairs": pairs,
        "texts": texts,
        "task": task,
        "classes": classes,
        "targets": targets,
        "mixture": mixed,
    }


def own_memory() -> float:
    """Bytes of this process that are in no file, without what waits to be given back."""
    gc.collect()
    pyarrow.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def read(dataset) -> None:
    for i in range(0, len(dataset), len(dataset) // NUM_READ):
        dataset[i]


def growths(root: Path) -> dict[str, float]:
    """How much a process grows that builds and reads each dataset; and one that holds a column."""
    for build in builders(root, "small").values():  # reading JSON takes a buffer, of any file
        read(build())
    grown = {}
    for name, build in builders(root, "large").items():
        before = own_memory()
        dataset = build()
        read(dataset)
        grown[name] = own_memory() - before
    before = own_memory()
    held = list(dataset.datasets[0]._table["prompt"])
    grown["held"] = own_memory() - before
    assert sum(map(len, held)) > 0.9 * SIZE
    return grown


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A small and a large file of rows, and an lm_eval task over each."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tiny.save_tokenizer(tmp_path / "tokenizer")
    for name, size in (("small", WARM_UP), ("large", SIZE)):
        file = tmp_path / f"{name}.jsonl"
        write_rows(file, size)
        write_definition(tmp_path, name, {"train": str(file)}, **TASK)
    return tmp_path


def test_no_dataset_holds_its_rows(root):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        grown = process.submit(growths, root).result(GUARD)
    print({name: f"{value / MB:.0f} MB" for name, value in grown.items()})
    assert grown.pop("held") > 0.9 * SIZE, "what this test would see if a dataset held its rows"
    assert set(grown) == {"pairs", "texts", "task", "classes", "targets", "mixture"}
    assert all(value < 0.15 * SIZE for value in grown.values()), grown
