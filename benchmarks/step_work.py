"""The same work for every system: which samples, in which order, and how many make a step."""

import json
import random
from pathlib import Path

from kd_data.packing import pack
from step_job import Job
from torchtune.datasets import text_completion_dataset

from hf_models import HFTokenizer

TEACHER = Path("models/SmolLM2-135M-Instruct")
STUDENT = Path("models/smollm2-15-layers")
TEXTS = Path("data/reference_manual/train.jsonl")
MAX_LEN = 384
BATCH_SIZE = 4


def _dataset(file: Path, size: int, packed: bool = False) -> dict[str, object]:
    return {
        "_component_": "torchtune.datasets.text_completion_dataset",
        "source": "json",
        "data_files": str(file),
        "column": "text",
        "split": f"train[:{size}]",
    } | ({"packed": True} if packed else {})


def real_jobs(
    folder: Path, systems: list[str], device: str, warm_up: int, steps: int, profiled: int
) -> list[Job]:
    """A job for each system on the two real models.

    The passages are drawn in one order; systems that keep an order take them as they come, grouping
    puts the same ones into other steps, and packed rows are so many that a step has about as many
    tokens.
    """
    file, tokenizer = folder / "samples.jsonl", HFTokenizer(TEACHER, max_seq_len=MAX_LEN)
    rows = TEXTS.read_text(encoding="utf-8").splitlines()
    random.Random(0).shuffle(rows)
    size = BATCH_SIZE * (warm_up + steps + profiled)
    if size * 2 > len(rows):
        raise ValueError(f"{TEXTS} has {len(rows)} passages, too few for {size} and packed rows")
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    lengths = [len(tokenizer.encode(json.loads(row)["text"])) for row in rows[:size]]
    lengths = [min(n, MAX_LEN) for n in lengths]
    jobs = []
    for system in systems:
        packed = system == "ours packed"
        jobs.append(
            Job(
                system,
                str(folder / system.replace(" ", "_")),
                str(TEACHER),
                str(STUDENT),
                _dataset(file, 2 * size if packed else size, packed),
                lengths,
                MAX_LEN,
                _packed_batch_size(file, tokenizer, lengths) if packed else BATCH_SIZE,
                device=device,
                dtype="bf16" if device == "cuda" else "fp32",
                warm_up=warm_up,
                steps=steps,
                profiled=profiled,
            )
        )
    return jobs


def _packed_batch_size(file: Path, tokenizer: HFTokenizer, lengths: list[int]) -> int:
    """Packed rows with about as many tokens as a step of single samples."""
    texts = text_completion_dataset(
        tokenizer, "json", "text", split=f"train[:{len(lengths)}]", data_files=str(file)
    )
    rows = len(pack(texts, tokenizer))
    return max(1, round(BATCH_SIZE * rows / len(lengths)))
