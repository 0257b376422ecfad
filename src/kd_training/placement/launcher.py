"""What torchrun, which starts the ranks, is told by one that fails."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kd_config.command_line import MISTAKES


@contextmanager
def last_words() -> Iterator[None]:
    """Have the launcher's summary, which ends the output of all ranks, quote a rank's mistake.

    Only that of the rank which fails first: the others fail in waiting for it. Leave the process
    group after the last words, or one of those may be gone before they are written.
    """
    try:
        yield
    except MISTAKES as err:
        path = os.environ.get("TORCHELASTIC_ERROR_FILE")
        if path is not None:
            # The launcher knows the others' failures by the second too, and the first one wins.
            before = int(time.time()) - 1
            words = {"message": " ".join(str(err).split()), "timestamp": before}
            Path(path).write_text(json.dumps(words))
        raise
