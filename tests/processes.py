"""Runs in processes of their own, to be killed or starved; one server has imported everything."""

import itertools
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any
from unittest import mock

from omegaconf import OmegaConf

from kd_config.command_line import run_main
from kd_training import OneDevice, loop, run, stop_signal

# Seconds after which a test gives up on what hangs; no test passes or fails by it otherwise.
GUARD = 600
# What Python tells an audit hook before it changes the disk, with the path first.
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "os.link")


def server() -> Any:
    """What forks processes that have imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["processes", "transformers", "torchtune.datasets"])
    with mock.patch.dict(os.environ, PYTHONPATH=importable()):
        forkserver.ensure_running()
    return context


class Processes:
    """Starts runs without importing torch each time.

    Args:
        log: File that takes what they print.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self._context = server()

    def start(self, config: dict, **options: Any) -> BaseProcess:
        """Start a run; options are those of `_run`."""
        process = self._context.Process(target=_run, args=(str(self.log), config), kwargs=options)
        process.start()
        return process

    def finish(self, config: dict, **options: Any) -> int:
        """Do a run; the exit code, negative for a signal."""
        process = self.start(config, **options)
        process.join(GUARD)
        assert process.exitcode is not None, "the run hangs"
        return process.exitcode

    def text(self) -> str:
        """All that was printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def _run(
    log: str,
    config: dict,
    work: Callable[..., Any] = run,
    largest_file: int | None = None,
    killed_in: str | None = None,
    killed_at: int = 1,
    killed_before: int | None = None,
    clock_step: float | None = None,
) -> None:
    """The run itself.

    Args:
        log: Where it prints.
        config: The run's.
        work: What is called with the config and a placement.
        largest_file: No file may grow beyond so many bytes, as on a full disk.
        killed_in: The function that SIGKILL comes instead of, the n-th time.
        killed_at: That n.
        killed_before: The change of its output or cache directory, by number, that SIGKILL
            comes instead of.
        clock_step: Seconds that pass between one look of `StopSignal` at the clock and the next.
    """
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    # A picture takes longer than the run.
    loop.plot_losses = lambda *_: None  # type: ignore[assignment]
    if killed_in is not None:
        _kill_in(killed_in, killed_at)
    if killed_before is not None:
        _kill_before(killed_before, config.get("cache_dir", config["output_dir"]))
    if clock_step is not None:
        look = itertools.count(step=clock_step).__next__
        stop_signal.time = SimpleNamespace(monotonic=look)  # type: ignore[assignment]
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    run_main(partial(work, OmegaConf.create(config), OneDevice("cpu")))


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


def _kill_before(number: int, folder: str) -> None:
    """Whatever happens between two changes, the disk is the same after it."""
    changes = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal changes
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and str(arguments[0]).startswith(folder):
            changes += 1
            if changes == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def importable() -> str:
    """PYTHONPATH for processes that must find the tests' modules."""
    return os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])


def launch(*arguments: Any) -> subprocess.Popen[str]:
    """`tune run`, which is to start ranks with one thread each."""
    command = [Path(sys.executable).with_name("tune"), "run", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": importable(), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
