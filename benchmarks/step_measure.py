"""Measure one system in this process; started once per row by step.py.

Reads a `Job` as JSON from the command line and prints a `Row` as JSON in its last line.
"""

import os
import sys
import time
from pathlib import Path

import torch
from step_clock import Clock
from step_job import Job, Row, job_of, to_json
from step_systems import NOTES, SYSTEMS, NotMeasuredError

PROBE = {"cpu": (1024, 576, 16384), "cuda": (4096, 4096, 4096)}  # rows, inner, columns


def peak_bytes(device: str) -> int:
    """The most that the process has held."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(x.split()[1] for x in status.splitlines() if x.startswith("VmHWM")))


def probe(job: Job) -> float:
    """GFLOP/s of one matrix product now, the best of five: other programs make it less."""
    rows, inner, columns = PROBE[job.device]
    dtype = torch.bfloat16 if job.dtype == "bf16" else torch.float32
    a = torch.randn(rows, inner, device=job.device, dtype=dtype)
    b = torch.randn(inner, columns, device=job.device, dtype=dtype)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        (a @ b)[0, 0].item()
        times.append(time.perf_counter() - start)
    return 2e-9 * rows * inner * columns / min(times)


def measure(job: Job) -> Row:
    """Run the system's steps."""
    row = Row(job, note=NOTES.get(job.system, ""))
    row.gflops.append(probe(job))
    if job.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    clock = Clock(job.device, job.warm_up, job.steps)
    try:
        SYSTEMS[job.system](job, clock)
    except NotMeasuredError as err:
        return Row(job, reason=str(err))
    row.peak_bytes = peak_bytes(job.device)
    row.gflops.append(probe(job))
    row.seconds, row.labels = clock.seconds, clock.timed_labels
    row.phases, row.profiled_labels, row.first = clock.phases, clock.profiled_labels, clock.first
    return row


def main() -> None:
    """Measure the job of the command line."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is local here
    print(to_json(measure(job_of(sys.argv[1]))))


if __name__ == "__main__":
    main()
