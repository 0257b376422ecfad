"""A run that stops at a named place until the test lets it go on."""

import errno
import os
import signal
from pathlib import Path

from torch import Tensor

from kd_losses import ForwardKLLoss


class BlockingLoss(ForwardKLLoss):
    """The forward KL, which waits in one of its calls until the other end of a pipe is closed.

    Args:
        fifo: The named pipe.
        at: The call, counted from 1; one a micro-batch.
        child: File that takes the id of a child which is forked there and outlives the run.
        kwargs: Of the forward KL.
    """

    def __init__(self, fifo: str, at: int = 1, child: str | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        self.fifo, self.at, self.child, self.calls = fifo, at, child, 0

    def per_token(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            if self.child is not None:
                self._fork(Path(self.child))
            Path(self.fifo).read_bytes()
        return super().per_token(student_logits, teacher_logits, labels)

    def _fork(self, child: Path) -> None:
        number = os.fork()
        if number == 0:
            signal.pause()
            os._exit(0)
        child.write_text(str(number))


def writing_end(fifo: Path) -> int | None:
    """The pipe's other end; None as long as nobody waits at it."""
    try:
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as err:
        if err.errno != errno.ENXIO:
            raise
        return None
