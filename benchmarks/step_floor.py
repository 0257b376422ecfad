"""How fast this machine could do a step if it did nothing but its matrix products.

Reads a `Job` as JSON from the command line and prints seconds and FLOPs by part as JSON.
"""

import json
import sys
import time
from typing import Any

import torch
from omegaconf import OmegaConf
from step_flops import PARTS, STUDENT, TEACHER, TEACHER_HEAD, Product, Work, step_work
from step_job import Job, job_of
from step_systems import base_config
from torchtune import config, training

from hf_models.torchtune_decoder.model import DecoderModel

LEAST_SECONDS = 0.15  # of measuring one product


def best_seconds(product: Product, device: str, dtype: torch.dtype) -> float:
    """The fastest of several runs of a product on random numbers."""
    a = torch.randn(product.rows, product.inner, device=device, dtype=dtype)
    b = torch.randn(product.inner, product.columns, device=device, dtype=dtype)
    out = torch.empty(product.rows, product.columns, device=device, dtype=dtype)
    torch.mm(a, b, out=out)
    best, spent = float("inf"), 0.0
    while spent < LEAST_SECONDS:
        _wait(device)
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        _wait(device)
        best = min(best, time.perf_counter() - start)
        spent += time.perf_counter() - start
    return best


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def models(job: Job) -> tuple[Any, Any]:
    """Teacher and student on the meta device, the student's adapter trained."""
    cfg = OmegaConf.create(base_config(job))
    with torch.device("meta"):
        teacher, student = config.instantiate(cfg.teacher_model), config.instantiate(cfg.model)
    model = DecoderModel(student)
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    model.train_adapter()
    return teacher, student


def mean_step(job: Job) -> tuple[list[int], int]:
    """Lengths and label tokens of a typical timed step: every n-th sample of all by length."""
    timed = job.lengths[job.warm_up * job.batch_size :][: job.steps * job.batch_size]
    ordered = sorted(timed)
    lengths = ordered[job.steps // 2 :: job.steps]
    return lengths, sum(lengths) - len(lengths)


def floor(job: Job) -> dict[str, Any]:
    """Seconds and FLOPs of a typical step by part, and its label tokens."""
    lengths, labels = mean_step(job)
    work = step_work(*models(job), lengths, labels)
    dtype = training.get_dtype(job.dtype, device=torch.device(job.device))
    distinct = set().union(*(part.products for part in work.values()))
    seconds = {product: best_seconds(product, job.device, dtype) for product in sorted(distinct)}
    # Attention is counted at the best rate of all, so that the floor is none too high.
    best_rate = max(product.flops / seconds[product] for product in distinct)

    def of(part: Work) -> float:
        products = sum(seconds[product] * number for product, number in part.products.items())
        return products + part.attention / best_rate

    return {
        "labels": labels,
        "best_gflops": best_rate / 1e9,
        "gflop": {name: work[name].flops / 1e9 for name in PARTS},
        "seconds": {name: of(work[name]) for name in PARTS},
    }


def floor_speed(found: dict[str, Any], system: str) -> float:
    """Label tokens per second of a system that does only its matrix products."""
    left_out = {"ours cached hidden": {TEACHER}, "ours cached top-64": {TEACHER, TEACHER_HEAD}}
    without = left_out.get(system, set())
    assert STUDENT not in without
    return found["labels"] / sum(s for name, s in found["seconds"].items() if name not in without)


if __name__ == "__main__":
    print(json.dumps(floor(job_of(sys.argv[1]))))
