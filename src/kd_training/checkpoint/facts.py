"""The plain values of a checkpoint, as JSON beside its tensors."""

import json
from functools import partial
from pathlib import Path
from typing import Any

FACTS_FILE = "state.json"
_OTHER_VERSION = (
    "another version of this package has saved it: resume with that one, or set "
    "resume_from_checkpoint=false to start anew"
)


class Facts(dict[str, Any]):
    """What was saved. A value that is not there is a person's mistake, as it comes from a file.

    Args:
        path: The file, for the message.
        values: What it holds.
    """

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        super().__init__(values)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise ValueError(f"{self._path} has no {key!r}; {_OTHER_VERSION}")


def write_facts(checkpoint: Path, facts: dict[str, Any]) -> None:
    """Write the JSON values of a checkpoint."""
    (checkpoint / FACTS_FILE).write_text(json.dumps(facts, default=_number))


def read_facts(checkpoint: Path) -> Facts:
    """The JSON values of a checkpoint.

    Raises:
        ValueError: If they are of another layout; for a missing value, when it is asked for.
    """
    path = checkpoint / FACTS_FILE
    try:
        facts = json.loads(path.read_text(), object_hook=partial(Facts, path))
    except ValueError as err:
        raise ValueError(f"{path} is not valid JSON: {err}; {_OTHER_VERSION}") from err
    if not isinstance(facts, Facts):
        raise ValueError(f"{path} holds no JSON object; {_OTHER_VERSION}")
    return facts


def _number(value: Any) -> float:
    """A learning rate may be a tensor."""
    return value.item()
