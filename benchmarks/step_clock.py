"""Times of steps, and in a separate pass those of the phases inside them."""

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypeVar

import torch

T = TypeVar("T")
DATA, TEACHER, STUDENT = "data", "teacher forward", "student forward"
LOSS, BACKWARD, OPTIMIZER, REST = "loss stage", "backward", "optimizer", "rest"
PHASES = [DATA, TEACHER, STUDENT, LOSS, BACKWARD, OPTIMIZER, REST]


class Clock:
    """Counts a system's steps: first those to warm up, then the timed ones, then the profiled ones.

    Phases cost a synchronisation each on a GPU, so only the profiled steps have them.

    Args:
        device: ``cpu`` or ``cuda``.
        warm_up: Steps that are not counted.
        steps: Timed steps.
    """

    def __init__(self, device: str, warm_up: int, steps: int) -> None:
        self._device, self._warm_up, self._steps = device, warm_up, steps
        self._marks: list[float] = []
        self.labels: list[float] = []
        self.first: dict[str, float] = {}
        self._inside: list[str] = []
        self._phases: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._of_this_step = dict(self._phases)

    def start(self) -> None:
        """The first step begins."""
        self._marks.append(self._now())
        self._since = self._marks[-1]

    def tick(self, labels: float, **values: float) -> None:
        """A step of so many label tokens has ended; the first one's losses are kept."""
        self._marks.append(self._now())
        self._since = self._marks[-1]
        self.labels.append(labels)
        self.first = self.first or values
        for name, seconds in self._of_this_step.items():
            self._phases[name] += seconds
            self._of_this_step[name] = 0.0

    @property
    def seconds(self) -> list[float]:
        """Of each timed step."""
        marks = self._marks[self._warm_up : self._warm_up + self._steps + 1]
        return [end - start for start, end in pairwise(marks)]

    @property
    def timed_labels(self) -> list[float]:
        """Label tokens of each timed step."""
        return self.labels[self._warm_up : self._warm_up + self._steps]

    @property
    def profiled_labels(self) -> float:
        """Mean label tokens of a profiled step."""
        labels = self.labels[self._warm_up + self._steps :]
        return sum(labels) / len(labels) if labels else 0.0

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of a profiled step by phase."""
        first = self._warm_up + self._steps
        number = len(self._marks) - 1 - first
        if number < 1:
            return {}
        whole = self._marks[-1] - self._marks[first]
        found = {name: self._phases[name] / number for name in PHASES if name != REST}
        return found | {REST: whole / number - sum(found.values())}

    def wrap(self, owner: Any, name: str, phase: str) -> None:
        """Count the time in a method, or a function of a module, as a phase."""
        inner: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._phase(phase):
                return inner(*args, **kwargs)

        setattr(owner, name, timed)

    def each(self, items: Iterable[T], phase: str = DATA) -> Iterator[T]:
        """The items; waiting for the next one is a phase."""
        iterator = iter(items)
        while True:
            with self._phase(phase):
                item = next(iterator, None)
            if item is None:
                return
            yield item

    @contextmanager
    def _phase(self, phase: str) -> Iterator[None]:
        if len(self._marks) <= self._warm_up + self._steps:
            yield
            return
        self._turn()
        self._inside.append(phase)
        try:
            yield
        finally:
            self._turn()
            self._inside.pop()

    def _turn(self) -> None:
        """What has passed belongs to the innermost phase alone."""
        now = self._now()
        if self._inside:
            self._of_this_step[self._inside[-1]] += now - self._since
        self._since = now

    def _now(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
