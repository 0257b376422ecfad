"""What data must know of where a run lives."""

from typing import Any, Protocol


class Ranks(Protocol):
    """The processes that share a dataset."""

    rank: int
    world_size: int

    def gather(self, value: Any) -> list[Any]:
        """Every rank's plain ``value``, by rank."""
