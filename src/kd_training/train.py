"""From a prepared run to a trained student."""

from dataclasses import dataclass
from typing import Any

import torch

from kd_data.workers import about_lost_worker
from kd_teachers import live_models
from kd_training.checkpoint.run_state import RunState
from kd_training.checkpoint.tensors import load_tensors
from kd_training.loop import Loop
from kd_training.output.metrics import peak_memory_gib
from kd_training.preflight.proof import check_models
from kd_training.prepared import Run
from kd_training.step import OptimizerStep


@dataclass
class Loaded:
    """A run with its weights.

    Attributes:
        step: Does one optimizer step.
        state: What a checkpoint keeps.
    """

    step: OptimizerStep
    state: RunState


def load(run: Run) -> Loaded:
    """Read the weights, make optimizer and scheduler, go on from a checkpoint if there is one."""
    placement = run.placement
    placement.place(run.student, run.checkpointer)
    if run.teacher is not None:
        run.teacher.load(placement)
    parameters = [p for p in run.student.module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": parameters}]
    for module in run.objective.modules.values():
        placement.place_module(module)
    own = list(run.objective.modules.parameters())
    if own:
        lr = run.optimization.terms_lr
        groups.append({"params": own} | ({} if lr is None else {"lr": lr}))
        parameters = parameters + own
    optimizer = run.optimization.optimizer(groups)
    scheduler = run.optimization.scheduler(optimizer, run.total_steps)
    step = OptimizerStep(
        run.objective,
        placement,
        optimizer,
        scheduler,
        parameters,
        run.scales,
        run.optimization.max_norm,
        run.records.directory / "logs",
    )
    state = RunState(
        run.student.module,
        run.objective,
        optimizer,
        scheduler,
        run.scales,
        run.source,
        run.seed,
        run.progress,
        placement,
    )
    if run.checkpoint is not None and run.facts is not None:
        tensors, _ = state.tensors_and_facts()
        load_tensors(run.checkpoint, tensors, placement)
        state.load(tensors, run.facts)
    # Not earlier: a sharded model's first forward leaves other parameters in place than its own.
    first = run.source.first_batch().to(placement.device)
    check_models(run.student, live_models(run.teacher), first)
    return Loaded(step, state)


def train(run: Run) -> None:
    """Load the weights and run all epochs.

    Raises:
        ValueError: If memory runs out.
        OSError: If a file cannot be read or written.
    """
    try:
        loaded = load(run)
        Loop(run, loaded.step, loaded.state).run()
    except RuntimeError as err:
        lost = about_lost_worker(err)
        if lost is not None:
            raise ValueError(lost) from err
        # A CPU's allocator raises a plain RuntimeError.
        if not isinstance(err, torch.OutOfMemoryError) and "can't allocate memory" not in str(err):
            raise
        device = run.placement.device
        raise ValueError(
            f"out of memory on {device} after step {run.progress.global_step}, at a "
            f"peak of {peak_memory_gib(device):.1f} GiB: lower batch_size (and raise "
            "gradient_accumulation_steps) or tokenizer.max_seq_len, raise "
            "loss.num_output_chunks, or set enable_activation_checkpointing=true "
            "(and enable_activation_offloading=true)"
        ) from err
