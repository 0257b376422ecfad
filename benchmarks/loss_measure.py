"""Measure one system in this process; started once per row by losses.py.

Reads a `Job` as JSON from the command line and prints a `Row` as JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from statistics import median

import torch
from loss_systems import SYSTEMS, Inputs, System, ours
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import kd_losses

# With the student's head repeated in the teacher's, this much noise gives a forward KL near 3e-3.
NOISE = 0.08


@dataclass
class Job:
    system: str
    loss: str
    parameters: dict[str, float] = field(default_factory=dict)
    device: str = "cpu"
    dtype: str = "float32"
    num_tokens: int = 1024
    student_width: int = 576
    teacher_width: int = 576
    vocab_size: int = 49152
    unlabelled: float = 0.0
    chunk_size: int | None = None  # ours only; None: its own choice
    cross_entropy: bool = True
    repeats: int = 5


@dataclass
class Row:
    job: Job
    floor_s: float = float("nan")
    time_s: float = float("nan")
    median_s: float = float("nan")
    peak_bytes: int = 0
    retained_bytes: int = 0
    divergence: float = float("nan")
    value_error: float | None = None
    gradient_error: float = float("nan")
    reason: str = ""  # why nothing was measured


def make_inputs(job: Job) -> Inputs:
    torch.manual_seed(0)
    extra = job.teacher_width - job.student_width
    options = {"device": job.device, "dtype": torch.float32}
    hidden = torch.randn(job.num_tokens, job.student_width, **options)
    head = torch.randn(job.vocab_size, job.student_width, **options) * job.student_width**-0.5 * 2.5
    noise = torch.randn(job.vocab_size, job.teacher_width, **options) * job.teacher_width**-0.5
    teacher_hidden = torch.cat([hidden, torch.randn(job.num_tokens, extra, **options)], dim=1)
    teacher_head = torch.nn.functional.pad(head, (0, extra)) + NOISE * noise
    labels = torch.randint(job.vocab_size, (job.num_tokens,), device=job.device)
    labels[torch.rand(job.num_tokens, device=job.device) < job.unlabelled] = -100
    dtype = getattr(torch, job.dtype)
    floats = [x.to(dtype) for x in (hidden, head, teacher_hidden, teacher_head)]
    return Inputs(floats[0].requires_grad_(), *floats[1:], labels)


def matrix_products(inputs: Inputs) -> Callable[[], None]:
    """What no implementation can avoid: two projections and the gradient's way back."""
    with torch.no_grad():
        student = inputs.student_hidden @ inputs.student_head.t()
        teacher = inputs.teacher_hidden @ inputs.teacher_head.t()
        grad = torch.empty_like(inputs.student_hidden)

    @torch.no_grad()
    def run() -> None:
        torch.mm(inputs.student_hidden, inputs.student_head.t(), out=student)
        torch.mm(inputs.teacher_hidden, inputs.teacher_head.t(), out=teacher)
        torch.mm(student, inputs.student_head, out=grad)

    return run


def seconds(run: Callable[[], object], device: str) -> float:
    _synchronize(device)
    start = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def memory(system: System, inputs: Inputs) -> tuple[int, int]:
    """Bytes that torch allocates on top of the inputs: at the peak, and between the two passes."""
    inputs.student_hidden.grad = None
    if inputs.labels.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        total = system.total(inputs)
        retained = torch.cuda.memory_allocated() - before
        total.backward()
        return torch.cuda.max_memory_allocated() - before, retained
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as forward:
        total = system.total(inputs)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as backward:
        total.backward()
    in_forward = _allocated(forward)
    in_backward = [in_forward[-1] + size for size in _allocated(backward)]
    return max(in_forward + in_backward), in_forward[-1]


def _allocated(run: profile) -> list[int]:
    """Bytes held after each allocation or release."""
    events = [e for e in run.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return [0, *accumulate(event.nbytes() for event in events)]


def reference(loss: kd_losses.KDLoss, inputs: Inputs, ce: float) -> tuple[float, Tensor]:
    """Mean divergence, and gradient of its sum with ``ce`` times the mean CE, in float64."""
    head, teacher_head = inputs.student_head.double(), inputs.teacher_head.double()
    counted = (inputs.labels != -100).nonzero().squeeze(-1)
    gradient = torch.zeros_like(inputs.student_hidden, dtype=torch.float64)
    divergence = 0.0
    for rows in counted.split(64):
        hidden = inputs.student_hidden.detach()[rows].double().requires_grad_()
        logits, labels = hidden @ head.t(), inputs.labels[rows]
        kd = loss.per_token(logits, inputs.teacher_hidden[rows].double() @ teacher_head.t(), labels)
        hard = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        total = kd.sum() + ce * hard
        (gradient[rows],) = torch.autograd.grad(total / len(counted), hidden)
        divergence += kd.sum().item() / len(counted)
    return divergence, gradient


def measure(job: Job) -> Row:
    loss = getattr(kd_losses, job.loss)(**job.parameters)
    try:
        ce = float(job.cross_entropy)
        system = SYSTEMS[job.system](loss, ce)
        if job.chunk_size:
            system = ours(loss, ce, job.chunk_size)
    except ImportError:
        return Row(job, reason="not installed")
    inputs = make_inputs(job)
    floor = matrix_products(inputs)

    def step() -> None:
        inputs.student_hidden.grad = None
        system.total(inputs).backward()

    step()  # warm-up; Liger compiles here
    times = [(seconds(floor, job.device), seconds(step, job.device)) for _ in range(job.repeats)]
    row = Row(job, min(t for t, _ in times), min(t for _, t in times), median(t for _, t in times))
    del floor
    row.peak_bytes, row.retained_bytes = memory(system, inputs)
    row.divergence, wanted = reference(loss, inputs, ce)
    grad = inputs.student_hidden.grad
    assert grad is not None
    row.gradient_error = ((grad.double() - wanted).norm() / wanted.norm()).item()
    if system.divergence is not None:
        value = system.divergence(inputs).item()
        row.value_error = abs(value / row.divergence - 1)
    return row


if __name__ == "__main__":
    print(json.dumps(asdict(measure(Job(**json.loads(sys.argv[1]))))))
