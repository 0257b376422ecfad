"""What is written is written for all ranks, or fails on all of them."""

from collections.abc import Callable
from typing import TypeVar

from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from kd_training.placement.one_device import Placement

T = TypeVar("T")


class WriteError(OSError):
    """A part of a run's output could not be written."""


def on_all_ranks(placement: Placement, work: Callable[[], T]) -> T:
    """Do ``work`` on every rank; none goes on before all are done.

    Raises:
        WriteError: On every rank, if a file could not be written on one of them.
    """
    cause = None
    try:
        result = work()
    except (OSError, SafetensorError, CheckpointException) as err:  # a full disk may be any
        cause = err
    failures = placement.gather(None if cause is None else _reason(cause))
    first = next((failure for failure in failures if failure is not None), None)
    if first is not None:
        raise WriteError(first) from cause
    return result


def first_failure(err: BaseException) -> BaseException:
    """What lies behind an error of torch's checkpoints, which come as one for each rank."""
    return next(iter(err.failures.values()))[0] if isinstance(err, CheckpointException) else err


def _reason(err: BaseException) -> str:
    err = first_failure(err)
    return str(err) or type(err).__name__
