"""Start the process that measures a system, and those that it needs before."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf
from random_models import Shape, save
from step_job import Job, Row, row_of, to_json
from step_systems import ours_config

HERE = Path(__file__).parent
CACHES = {
    "ours cached hidden": ["cache.logits=hidden"],
    "ours cached top-64": ["cache.logits=top_k", "cache.k=64"],
}
RECIPE = "kd_cache_teacher"


def child(command: list[str], timeout: float, trl: str | None = None) -> tuple[str, str]:
    """Run a process of ours; its last line, or why there is none."""
    first = [str(HERE)] if trl is None else [str(HERE), trl]
    path = os.pathsep.join([*first, *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        done = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env={"HF_HUB_OFFLINE": "1", **os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        return "", f"not done in {timeout:.0f} s"
    if done.returncode != 0:
        return "", (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:160]
    return (done.stdout.strip().splitlines() or [""])[-1], ""


def make_models(shape: Shape, folder: Path, device: str, timeout: float) -> None:
    """Write random models; a process of its own gives a GPU's memory back."""
    _, reason = child(save(shape, folder, device), timeout)
    if reason:
        raise SystemExit(f"error: the models could not be made: {reason}")


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
