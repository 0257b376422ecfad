"""Processes that read and tokenise beside the run, and leave its signals and errors to it."""

import os
import signal
from collections.abc import Generator
from threading import Thread
from typing import Any

from torch.utils.data import DataLoader

from kd_data.batch import Batch

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOST = "DataLoader worker"  # how torch's error about a process that is gone begins


def worker_options(num_workers: int, num_ahead: int) -> dict[str, Any]:
    """What makes a `DataLoader` read in ``num_workers`` processes, ``num_ahead`` batches ahead.

    They are forked, so that they share the dataset's memory instead of each taking a copy.
    """
    if num_workers == 0:
        return {"num_workers": 0}
    return {
        "num_workers": num_workers,
        "prefetch_factor": max(2, -(-num_ahead // num_workers)),
        "multiprocessing_context": "fork",
        "worker_init_fn": _start_worker,
    }


def batches(loader: DataLoader) -> Generator[Batch, None, None]:
    """One pass over the loader. Its processes, if any, start and end with it.

    Raises:
        ValueError: What a sample's error says, in its own words.
    """
    # A new process inherits this: a signal to the whole group, as Ctrl-C and launchers send it,
    # must reach the run alone, which stops after its step.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        iterator = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield from iterator
    except ValueError as err:
        raise ValueError(_own_words(err)) from err


def about_lost_worker(err: BaseException) -> str | None:
    """What to tell a person if ``err`` is about a worker that was killed; else None."""
    text = " ".join(str(err).split())
    if not text.startswith(_LOST):
        return None
    return (
        f"num_workers: {text.rstrip('. ')}; it may have run out of memory (in a container also of "
        "/dev/shm): lower num_workers, or set it to 0"
    )


def _own_words(err: ValueError) -> str:
    """The message as it was in the worker: torch wraps it in that one's traceback."""
    text = str(err)
    return text.rpartition("\nValueError: ")[2].strip() if text.startswith("Caught ") else text


def _start_worker(_: int) -> None:
    # The tokenizers' threads have not come along, and they warn of it.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    Thread(target=_end_when_the_run_says_so, daemon=True).start()


def _end_when_the_run_says_so() -> None:
    """Heed SIGTERM, which is blocked, from the run itself alone: it ends its processes that way."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
