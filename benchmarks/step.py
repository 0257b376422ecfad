"""Time and memory of a whole optimizer step, side by side with torchtune's recipe and TRL's trainer.

    python benchmarks/step.py                                  # CPU, 2 cores: about 5 minutes
    python benchmarks/step.py --system torchtune --system "ours live" --steps 3
    python benchmarks/step.py --trl FOLDER                     # where TRL was installed to

The same teacher, student, LoRA, samples, type and optimizer for all; each system in a process of
its own. The floor is the time of the step's matrix products alone, measured on this machine. Writes
tables, figures and a picture to benchmarks/results/. TRL: pip install --no-deps --target FOLDER
trl==1.16.0; without --trl it is measured if it can be imported.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import step_report as report
import torch
from omegaconf import OmegaConf
from step_job import Job, Row, row_of, to_json, write_rows
from step_systems import SYSTEMS, ours_config
from step_work import real_jobs

HERE = Path(__file__).parent
CACHES = {
    "ours cached hidden": ["cache.logits=hidden"],
    "ours cached top-64": ["cache.logits=top_k", "cache.k=64"],
}
RECIPE = "kd_cache_teacher"


def child(command: list[str], timeout: float, trl: str | None = None) -> tuple[str, str]:
    """Run a process of ours; its last line, or why there is none."""
    environment = dict(os.environ)
    if trl is not None:
        environment["PYTHONPATH"] = os.pathsep.join([trl, environment.get("PYTHONPATH", "")])
    try:
        done = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return "", f"not done in {timeout:.0f} s"
    if done.returncode != 0:
        return "", (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:160]
    return (done.stdout.strip().splitlines() or [""])[-1], ""


def make_cache(job: Job, timeout: float) -> tuple[Job, float, str]:
    """Have the teacher's answers kept; the job that reads them, seconds, and what went wrong."""
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    cache, file = folder / "cache", folder / "config.yaml"
    OmegaConf.save(ours_config(job), file)
    start = time.perf_counter()
    command = ["-m", RECIPE, "--config", str(file), f"cache_dir={cache}", *CACHES[job.system]]
    _, reason = child(command, timeout)
    if "No module named" in reason:
        reason = f"there is no recipe {RECIPE}"
    return replace(job, cache=str(cache)), time.perf_counter() - start, reason


def run(job: Job, timeout: float, trl: str | None = None) -> Row:
    """Measure one system in a process of its own."""
    seconds = 0.0
    if job.system in CACHES:
        job, seconds, reason = make_cache(job, timeout)
        if reason:
            return Row(job, reason=reason)
    path = trl if job.system == "trl" else None
    line, reason = child([str(HERE / "step_measure.py"), to_json(job)], timeout, path)
    row = Row(job, reason=reason) if reason else row_of(line)
    if job.cache is not None:
        files = (file for file in Path(job.cache).rglob("*") if file.is_file())
        row.cache_seconds, row.cache_bytes = seconds, sum(file.stat().st_size for file in files)
    return row


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
    parts += ["## Seconds of a step by phase", report.phase_table(rows)]
    parts += ["## Matrix products of a step", report.floor_table(floor)] if floor else []
    (output / f"{name}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    write_rows(output / f"{name}.json", rows, title=title, machine=machine(), floor=floor)
    if any(not row.reason for row in rows):
        report.picture(title, rows, floor or None, output / f"{name}.png")


def main() -> None:
    """Measure the systems one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--system", action="append", choices=list(SYSTEMS), help="only these")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5, help="timed steps; the median counts")
    parser.add_argument("--profiled", type=int, default=1, help="further steps, timed by phase")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one system")
    parser.add_argument("--trl", help="folder that TRL was installed to")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    args = parser.parse_args()
    title = f"A whole step: SmolLM2-135M teaches 15 layers with LoRA, {args.device}"
    with tempfile.TemporaryDirectory() as folder:
        systems = args.system or list(SYSTEMS)
        counts = (args.warm_up, args.steps, args.profiled)
        jobs = real_jobs(Path(folder), systems, args.device, *counts)
        line, reason = child([str(HERE / "step_floor.py"), to_json(jobs[0])], args.timeout)
        print(reason or f"floor: {line}", flush=True)
        floor = {} if reason else json.loads(line)
        rows: list[Row] = []
        for job in jobs:
            rows.append(run(job, args.timeout, args.trl))
            print(report.table(rows, floor or None).splitlines()[-1], flush=True)
            write(args.output, f"step-{args.device}", title, rows, floor)
    print(f"wrote {args.output}/step-{args.device}.md, .json and .png")


if __name__ == "__main__":
    main()
