"""A run that stops at a named place until the test lets it go on."""

import os
import signal
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from processes import GUARD
from torch import Tensor

from kd_losses import ForwardKLLoss


class BlockingLoss(ForwardKLLoss):
    """The forward KL, which in one of its calls says that it is there and waits for a `Gate`.

    Args:
        folder: The gate's.
        at: The call, counted from 1; one a micro-batch.
        child: Whether it first forks a child, which outlives the run and says its id instead.
        kwargs: Of the forward KL.
    """

    def __init__(self, folder: str, at: int, child: bool = False, **kwargs) -> None:
        super().__init__(**kwargs)
        self.folder, self.at, self.child, self.calls = Path(folder), at, child, 0

    def per_token(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            number = os.fork() if self.child else os.getpid()
            if number == 0:
                signal.pause()
                os._exit(0)
            (self.folder / "reached").write_text(str(number))
            (self.folder / "go_on").read_bytes()
        return super().per_token(student_logits, teacher_logits, labels)


class Gate:
    """Where a `BlockingLoss` waits: two named pipes.

    Args:
        folder: An empty folder for them.
    """

    def __init__(self, folder: Path) -> None:
        for name in ("reached", "go_on"):
            os.mkfifo(folder / name)
        self._reached = os.open(folder / "reached", os.O_RDONLY | os.O_NONBLOCK)
        self._go_on = os.open(folder / "go_on", os.O_RDWR)

    def reached(self, process: BaseProcess) -> int:
        """Wait until the run is there; the id that it says."""
        wait([self._reached, process.sentinel], GUARD)
        assert process.is_alive(), "the run has ended before"
        return int(os.read(self._reached, 100))

    def open(self) -> None:
        """Let it go on."""
        os.close(self._go_on)
