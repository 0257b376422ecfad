"""What may have been meant by a name that is not there."""

import difflib
from collections.abc import Iterable
from typing import Any


def nearest(name: Any, valid: Iterable[Any]) -> str:
    """``; did you mean …?``, or nothing where nothing is near."""
    close = difflib.get_close_matches(str(name), [str(v) for v in valid], n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
