"""A person's mistake ends in one line, not in a traceback."""

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from omegaconf.errors import OmegaConfBaseException
from torchtune.config._errors import ConfigError, InstantiationError

# What a mistake in the config, the data or the files raises, in our rooms and in torchtune's.
_MISTAKES = (
    ValueError,
    OSError,
    FloatingPointError,
    OmegaConfBaseException,
    ConfigError,
    InstantiationError,
)


def run_main(main: Callable[[], Any]) -> NoReturn:
    """Call ``main`` and exit; a mistake is reported in one line on stderr with exit code 1.

    ``KD_TRACEBACK=1`` in the environment shows the traceback instead.
    """
    try:
        sys.exit(main())
    except _MISTAKES as err:
        if os.environ.get("KD_TRACEBACK"):
            raise
        text = " ".join(str(err).split()) or type(err).__name__
        print(f"error: {text}", file=sys.stderr)
        sys.exit(1)
