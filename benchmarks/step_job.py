"""What the processes of a whole step's benchmark are told, and what they answer, as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """One system, and the steps that it is to do.

    Attributes:
        system: A name of `step_systems.SYSTEMS`.
        folder: A directory of its own.
        teacher: Model directory.
        student: Model directory.
        dataset: The config's node of it.
        lengths: Tokens of each sample, in the dataset's order.
        max_len: Samples are cut to it.
        batch_size: Samples, or packed rows, of a step.
        shuffle: Whether the samples are drawn; only ours draw alike what is asked for.
        cache: Directory of the teacher's kept answers, for the systems that read them.
    """

    system: str
    folder: str
    teacher: str
    student: str
    dataset: dict[str, Any]
    lengths: list[int]
    max_len: int = 384
    batch_size: int = 4
    shuffle: bool = False
    lora_rank: int = 64
    device: str = "cpu"
    dtype: str = "fp32"
    warm_up: int = 1
    steps: int = 5
    profiled: int = 1
    cache: str | None = None

    @property
    def all_steps(self) -> int:
        """Steps from the first to the last."""
        return self.warm_up + self.steps + self.profiled

    def labels_of_step(self, number: int) -> int:
        """Label tokens of a step, counted from 0, of samples in order: each but a text's first."""
        first = number * self.batch_size
        return sum(n - 1 for n in self.lengths[first : first + self.batch_size])


@dataclass
class Row:
    """What was measured.

    Attributes:
        job: Of what.
        seconds: Of each timed step, from the end of the one before: the data's part is in it.
        labels: Label tokens of each timed step.
        peak_bytes: Of the whole process: resident on the CPU, allocated by torch on a GPU.
        phases: Seconds of a profiled step by phase.
        profiled_labels: Label tokens of a profiled step.
        first: The first step's losses, as the system names them.
        gflops: What the machine did in one matrix product, before and after.
        cache_seconds: What making the cache took, with the start of its process.
        cache_bytes: Its size.
        note: What this system leaves out or adds.
        reason: Why nothing was measured.
    """

    job: Job
    seconds: list[float] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    phases: dict[str, float] = field(default_factory=dict)
    profiled_labels: float = 0.0
    first: dict[str, float] = field(default_factory=dict)
    gflops: list[float] = field(default_factory=list)
    cache_seconds: float = 0.0
    cache_bytes: int = 0
    note: str = ""
    reason: str = ""

    @property
    def speeds(self) -> list[float]:
        """Label tokens per second of each timed step."""
        return [n / s for n, s in zip(self.labels, self.seconds, strict=True)]


def to_json(value: Job | Row) -> str:
    """In one line."""
    return json.dumps(asdict(value))


def job_of(text: str) -> Job:
    """What `to_json` wrote."""
    return Job(**json.loads(text))


def row_of(text: str) -> Row:
    """What `to_json` wrote."""
    fields = json.loads(text)
    return Row(**{**fields, "job": Job(**fields["job"])})


def write_rows(path: Path, rows: Sequence[Row], **facts: Any) -> None:
    """A file of everything that was measured, and what else is known."""
    content = {**facts, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
