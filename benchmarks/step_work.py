"""The same work for every system: which samples, in which order, and how many make a step."""

import json
import random
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from random_models import Shape
from step_job import Job

from hf_models import HFTokenizer

TEACHER = Path("models/SmolLM2-135M-Instruct")
STUDENT = Path("models/smollm2-15-layers")
TEXTS = Path("data/reference_manual/train.jsonl")
MAX_LEN = 384
BATCH_SIZE = 4


class Counts(NamedTuple):
    """Steps of each kind, as in `Job`."""

    warm_up: int
    steps: int
    profiled: int


def _texts(file: Path, size: int) -> dict[str, Any]:
    return {
        "_component_": "torchtune.datasets.text_completion_dataset",
        "source": "json",
        "data_files": str(file),
        "column": "text",
        "split": f"train[:{size}]",
    }


def real_jobs(folder: Path, systems: list[str], device: str, counts: Counts) -> list[Job]:
    """A job for each system on the two real models.

    The passages are drawn in one order; systems that keep an order take them as they come, grouping
    puts the same ones into other steps, and packed rows are so many that a step has about as many
    tokens.

    Raises:
        ValueError: If there are too few passages.
    """
    file, tokenizer = folder / "samples.jsonl", HFTokenizer(TEACHER, max_seq_len=MAX_LEN)
    rows = TEXTS.read_text(encoding="utf-8").splitlines()
    random.Random(0).shuffle(rows)
    size = BATCH_SIZE * sum(counts)
    if size * 2 > len(rows):
        raise ValueError(f"{TEXTS} has {len(rows)} passages, too few for {size} and packed rows")
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    texts = (json.loads(row)["text"] for row in rows[:size])
    lengths = [min(len(tokenizer.encode(text)), MAX_LEN) for text in texts]
    base = Job(
        system="",
        folder="",
        teacher=str(TEACHER),
        student=str(STUDENT),
        dataset=_texts(file, size),
        lengths=lengths,
        max_len=MAX_LEN,
        batch_size=BATCH_SIZE,
        device=device,
        dtype=_dtype(device),
        **counts._asdict(),
    )
    packed: dict[str, Any] = {
        "dataset": _texts(file, 2 * size) | {"packed": True},
        # Every packed row is full: torchtune splits the passage at its end.
        "batch_size": max(1, round(BATCH_SIZE * mean(lengths) / MAX_LEN)),
    }
    return [
        replace(job, **packed) if job.system == "ours packed" else job
        for job in _each(base, folder, systems)
    ]


def random_jobs(
    folder: Path,
    shape: Shape,
    systems: list[str],
    device: str,
    counts: Counts,
    length: int,
    batch_size: int,
) -> list[Job]:
    """A job for each system on the random models in a folder, and on rows of one length."""
    size = batch_size * sum(counts)
    rows = {"size": size, "length": length, "vocab_size": shape.vocab_size}
    base = Job(
        system="",
        folder="",
        teacher=str(folder / "teacher"),
        student=str(folder / "student"),
        dataset={"_component_": "random_models.RandomTokens", **rows},
        lengths=[length] * size,
        max_len=length,
        batch_size=batch_size,
        device=device,
        dtype=_dtype(device),
        **counts._asdict(),
    )
    return _each(base, folder, systems)


def _each(base: Job, folder: Path, systems: list[str]) -> list[Job]:
    names = {system: str(folder / system.replace(" ", "_")) for system in systems}
    return [replace(base, system=system, folder=name) for system, name in names.items()]


def _dtype(device: str) -> str:
    return "bf16" if device == "cuda" else "fp32"
