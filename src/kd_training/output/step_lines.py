"""Files that get a line of JSON at some steps."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from kd_training.placement.writing import WriteError


class StepLines:
    """A file of one JSON object a line, each with its ``step``; made with its first line.

    Args:
        path: The file.
        first_step: Steps already done; what an interrupted run recorded after them is dropped.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        self._path = path
        self._file: TextIO | None = None
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = path.with_name(f".{path.name}.partial")
            own = (line for line in lines if _step(line) <= first_step)
            kept.write_text("".join(own), encoding="utf-8")
            kept.replace(path)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Add a line.

        Raises:
            WriteError: If it cannot be written.
        """
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("a", encoding="utf-8")
            self._file.write(json.dumps({"step": step, **values}, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as err:
            raise WriteError(f"{self._path} could not be written: {err}") from err

    def close(self) -> None:
        """Close it."""
        # Every line was flushed when it was written: what fails now has been reported.
        with suppress(OSError):
            if self._file is not None:
                self._file.close()


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # the last line of a killed process
        return math.inf
