"""A disk that is full for students."""

import errno
import os
from typing import Any

from hf_models import HFCheckpointer


class FullCheckpointer(HFCheckpointer):
    """Reads like any other, and finds no room to write."""

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
