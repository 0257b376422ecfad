"""Runs in processes of their own, to be killed or starved; one server has imported everything."""

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from omegaconf import OmegaConf

from kd_training import OneDevice, loop, run, run_main


class Processes:
    """Starts runs without importing torch each time.

    Args:
        log: File that takes what they print.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["processes", "transformers", "torchtune.datasets"])

    def start(self, config: dict, **options: Any) -> BaseProcess:
        """Start a run; options are those of `_run`."""
        process = self._context.Process(target=_run, args=(str(self.log), config), kwargs=options)
        process.start()
        return process

    def finish(self, config: dict, **options: Any) -> int:
        """Start a run and wait for its exit code, negative for a signal."""
        process = self.start(config, **options)
        process.join(120)
        assert process.exitcode is not None, "the run hangs"
        return process.exitcode

    def text(self) -> str:
        """All that was printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def _run(
    log: str,
    config: dict,
    largest_file: int | None = None,
    killed_in: str | None = None,
    killed_at: int = 1,
) -> None:
    """The run itself.

    Args:
        log: Where it prints.
        config: The run's.
        largest_file: No file may grow beyond so many bytes, as on a full disk.
        killed_in: The function that SIGKILL comes instead of, the n-th time.
        killed_at: That n.
    """
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    # A picture takes longer than the run.
    loop.plot_losses = lambda *_: None  # type: ignore[assignment]
    if killed_in is not None:
        _kill_in(killed_in, killed_at)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    run_main(partial(run, OmegaConf.create(config), OneDevice("cpu")))


def _kill_in(name: str, at: int) -> None:
    owner_name, _, attribute = name.rpartition(".")
    owner = resolve_name(owner_name)
    original: Callable[..., Any] = getattr(owner, attribute)
    calls = 0

    def killed(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, attribute, killed)


def wait_for(condition: Callable[[], bool], process: BaseProcess, seconds: float = 60) -> None:
    """Return when the condition holds or the process has ended.

    Raises:
        TimeoutError: If neither happens.
    """
    end = time.monotonic() + seconds
    while not condition() and process.is_alive():
        if time.monotonic() > end:
            raise TimeoutError("the run does not get there")
        time.sleep(0.01)


def importable() -> str:
    """PYTHONPATH for processes that must find the tests' modules."""
    return os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
