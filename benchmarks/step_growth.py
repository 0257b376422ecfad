"""How time and memory of a step grow: with length, vocabulary, the student's depth, a cache's size.

Small random models, so that the parts that grow are seen and it takes minutes on a CPU.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from random_models import SMALL, Shape
from step_clock import DATA
from step_job import Job, Row
from step_run import make_models, run
from step_work import Counts, random_jobs

COUNTS = Counts(1, 3, 1)
LENGTH, DEPTH, VOCABULARY, CACHE = "tokens", "student depth", "vocabulary", "documents"
CACHED = "ours cached hidden"


@dataclass(frozen=True)
class Point:
    """One place on one axis.

    Attributes:
        axis: What grows.
        x: How far.
        shape: The models.
        length: Tokens of each sample.
        batch_size: Samples of a step.
        systems: What is measured there.
        documents: Samples of the dataset, where they are more than the steps need.
    """

    axis: str
    x: int
    shape: Shape = SMALL
    length: int = 512
    batch_size: int = 1
    systems: tuple[str, ...] = ("torchtune", "ours live")
    documents: int | None = None


def points(quick: bool) -> list[Point]:
    """All of them, by axis."""
    lengths = [128, 256] if quick else [256, 512, 1024, 2048, 4096]
    vocabularies = [1024, 2048] if quick else [49152, 100352, 151936]
    depths = [1, 2] if quick else [1, 2, 4, 8]
    documents = [32, 64] if quick else [64, 256, 1024, 4096]
    base = replace(SMALL, vocab_size=1024) if quick else SMALL
    cached = partial(Point, CACHE, length=128, batch_size=4, systems=(CACHED,))
    return [
        *(Point(LENGTH, n, base, length=n) for n in lengths),
        *(Point(VOCABULARY, n, replace(base, vocab_size=n)) for n in vocabularies),
        *(Point(DEPTH, n, replace(base, student_depth=n)) for n in depths),
        *(cached(n, base, documents=n) for n in documents),
    ]


def measure(device: str, quick: bool, timeout: float, output: Path) -> None:
    """Measure every point, write what is known after each, draw them at the end."""
    output.mkdir(parents=True, exist_ok=True)
    stem = output / "-".join(["growth", device, *(["quick"] if quick else [])])
    found: list[tuple[Point, Row]] = []
    for point in points(quick):
        for row in _rows(point, device, timeout):
            found.append((point, row))
            print(table(found).splitlines()[-1], flush=True)
            content = [asdict(p) | {"row": asdict(r)} for p, r in found]
            stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
            page = f"# Growth of a step\n\n{about()}\n\n{table(found)}\n"
            stem.with_suffix(".md").write_text(page)
    picture([(p, r) for p, r in found if not r.reason], stem.with_suffix(".png"))
    print(f"wrote {stem}.md, .json and .png")


def about() -> str:
    """What was measured, and where."""
    where = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    return f"Small random Llama models, LoRA on all linear layers, a live teacher; {where}."


def _rows(point: Point, device: str, timeout: float) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(point.shape, folder, device, timeout)
        jobs = random_jobs(
            folder,
            point.shape,
            list(point.systems),
            device,
            COUNTS._replace(profiled=5) if point.axis == CACHE else COUNTS,
            point.length,
            point.batch_size,
        )
        for job in jobs:
            yield run(_over_all(job, point), timeout)


def _over_all(job: Job, point: Point) -> Job:
    """With all documents, drawn, so that reading jumps about in the cache."""
    if point.documents is None:
        return job
    return replace(job, shuffle=True, dataset=job.dataset | {"size": point.documents})


def table(found: list[tuple[Point, Row]]) -> str:
    """Return a markdown table."""
    lines = [
        "| what grows | to | system | s a step | label tokens/s | peak GB | data, ms | cache MB |",
        "|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    for point, row in found:
        start = f"| {point.axis} | {point.x} | {row.job.system} |"
        if row.reason:
            lines.append(f"{start} not measured: {row.reason} | | | | |")
            continue
        cache = f"{row.cache_bytes / 1e6:.1f}" if row.cache_bytes else ""
        lines.append(
            f"{start} {median(row.seconds):.3g} | {median(row.speeds):.0f} "
            f"| {row.peak_bytes / 1e9:.2f} | {row.phases[DATA] * 1e3:.1f} | {cache} |"
        )
    return "\n".join(lines)


def picture(found: list[tuple[Point, Row]], path: Path) -> None:
    """Draw time above memory, a column for each axis, a line for each system."""
    axes = list(dict.fromkeys(point.axis for point, _ in found))
    figure, panels = plt.subplots(2, len(axes), figsize=(3.6 * len(axes), 6), squeeze=False)
    for column, axis in enumerate(axes):
        cached = axis == CACHE
        here = [(point, row) for point, row in found if point.axis == axis]
        for system in dict.fromkeys(row.job.system for _, row in here):
            of_system = [(point.x, row) for point, row in here if row.job.system == system]
            xs = [row.cache_bytes / 1e6 if cached else x for x, row in of_system]
            ms = [(r.phases[DATA] if cached else median(r.seconds)) * 1e3 for _, r in of_system]
            peaks = [row.peak_bytes / 1e9 for _, row in of_system]
            colour = "tab:gray" if system == "torchtune" else "tab:blue"
            for panel, ys in zip(panels[:, column], (ms, peaks), strict=True):
                panel.plot(xs, ys, "o-", label=system, color=colour)
        panels[0][column].set_ylabel("ms to read a step's samples" if cached else "ms of a step")
        panels[1][column].set_ylabel("peak memory, GB")
        for panel in panels[:, column]:
            panel.locator_params(axis="x", nbins=5)
            panel.set_xlabel("cache, MB" if cached else axis)
            panel.set_ylim(0, 1.25 * panel.get_ylim()[1])
            panel.legend(fontsize=7, loc="upper left")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
