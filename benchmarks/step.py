"""Time and memory of a whole optimizer step, beside torchtune's recipe and TRL's trainer.

    python benchmarks/step.py                                  # CPU, 2 cores: about 5 minutes
    python benchmarks/step.py --system torchtune --system "ours live" --steps 3
    python benchmarks/step.py --trl FOLDER                     # where TRL was installed to
    python benchmarks/step.py --growth                         # length, vocabulary, depth, cache

The same teacher, student, LoRA, samples, type and optimizer for all; each system in a process of
its own. The floor is the time of the step's matrix products alone, measured on this machine. Writes
tables, figures and a picture to benchmarks/results/. TRL: pip install --no-deps --target FOLDER
trl==1.16.0; without --trl it is measured if it can be imported.
"""

import argparse
import importlib.metadata
import json
import platform
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import step_growth
import step_report as report
import torch
from random_models import QWEN3_8B, TINY
from step_job import Job, Row, to_json, write_rows
from step_run import HERE, child, make_models, run
from step_systems import SYSTEMS
from step_work import Counts, random_jobs, real_jobs

SHAPES = {
    "qwen3_8b": (QWEN3_8B, 1024, 4),  # tokens of a sample, samples of a step
    "tiny": (TINY, 64, 2),
}
ABOUT_PHASES = (
    "From steps of their own, not the timed ones. Ours take the loss's gradient with regard to the "
    "hidden states in the loss stage; the others take it in the backward. Both heads' projections "
    "are in the loss stage for all."
)
ON_RANDOM = ["torchtune", "ours live", "ours cached hidden"]


def machine() -> str:
    """What it ran on."""
    packages = ["torch", "torchtune", "transformers"]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    device = platform.machine()
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return ", ".join([device, f"{torch.get_num_threads()} threads", *versions])


def write(output: Path, name: str, title: str, rows: list[Row], floor: dict[str, Any]) -> None:
    """All that is known by now."""
    output.mkdir(parents=True, exist_ok=True)
    parts = [f"# {title}", machine(), report.table(rows, floor or None)]
    parts += ["## Seconds by phase, for 1000 label tokens", report.phase_table(rows), ABOUT_PHASES]
    parts += ["## Matrix products of a step", report.floor_table(floor)] if floor else []
    (output / f"{name}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    write_rows(output / f"{name}.json", rows, title=title, machine=machine(), floor=floor)
    if any(not row.reason for row in rows):
        report.picture(title, rows, floor or None, output / f"{name}.png")


def make_jobs(args: argparse.Namespace, folder: Path) -> list[Job]:
    """Models, samples and a job for each system."""
    counts = Counts(args.warm_up, args.steps, args.profiled)
    if args.shapes is None:
        return real_jobs(folder, args.system or list(SYSTEMS), args.device, counts)
    shape, length, batch_size = SHAPES[args.shapes]
    make_models(shape, folder, args.device, args.timeout)
    print(f"made random models of {args.shapes}", flush=True)
    systems = args.system or ON_RANDOM
    return random_jobs(folder, shape, systems, args.device, counts, length, batch_size)


def measure_all(jobs: list[Job], args: argparse.Namespace, name: str, title: str) -> None:
    """The floor and every system, one after the other; what is known is written after each."""
    usual = max(jobs, key=lambda job: job.batch_size)  # a packed row has several samples
    line, reason = child([str(HERE / "step_floor.py"), to_json(usual)], args.timeout)
    print(f"floor: {reason or line}", flush=True)
    floor = {} if reason else json.loads(line)
    rows: list[Row] = []
    for job in jobs:
        rows.append(run(job, args.timeout, args.trl))
        print(report.table(rows, floor or None).splitlines()[-1], flush=True)
        write(args.output, name, title, rows, floor)


def main() -> None:
    """Measure the systems of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--system", action="append", choices=list(SYSTEMS), help="only these")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shapes", choices=list(SHAPES), help="random models, nothing downloaded")
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5, help="timed steps; the median counts")
    parser.add_argument("--profiled", type=int, default=1, help="further steps, timed by phase")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one process")
    parser.add_argument("--trl", help="folder that TRL was installed to")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--growth", action="store_true", help="small models that grow, instead")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller points of growth")
    args = parser.parse_args()
    # A time limit's signal ends the process that measures too, and the models do not stay behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if args.growth:
        step_growth.measure(args.device, args.quick, args.timeout, args.output)
        return
    models = args.shapes or "SmolLM2-135M, 15 of 30 layers"
    title = f"A whole step: {models}, LoRA, {args.device}"
    name = "-".join(filter(None, ["step", args.device, args.shapes]))
    with tempfile.TemporaryDirectory() as folder:
        measure_all(make_jobs(args, Path(folder)), args, name, title)
    print(f"wrote {args.output / name}.md, .json and .png")


if __name__ == "__main__":
    main()
