"""SIGTERM and SIGINT end a run after the current step instead of in the middle of it."""

import signal
import sys
import time
from types import FrameType, TracebackType
from typing import Any, Self

import torch

from kd_training.placement.one_device import Placement

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Ctrl-C reaches a worker from the terminal and once more through its launcher, at the same moment.
_SAME_EVENT_S = 2.0


class StopSignal:
    """Notes a request to stop while the context is open; a second request ends the process at once.

    Args:
        placement: Where the run lives; its ranks must stop at the same step.
    """

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._received: signal.Signals | None = None
        self._when = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self) -> signal.Signals | None:
        """The signal that any rank has received; the same answer on every rank."""
        flags = [float(number is self._received) for number in _SIGNALS]
        counts = self._placement.sum(torch.tensor(flags))
        for number, count in zip(_SIGNALS, counts.tolist(), strict=True):
            if count:
                return number
        return None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and time.monotonic() - self._when > _SAME_EVENT_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if self._received is None:
            self._received, self._when = signal.Signals(number), time.monotonic()
            name = self._received.name
            print(f"\n{name}: finishing this step, then saving; again: exit at once",
                  file=sys.stderr)  # fmt: skip
