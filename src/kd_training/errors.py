"""A person's mistake ends in one line, not in a traceback."""

import os
import signal
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torchtune.config._errors import ConfigError, InstantiationError
from yaml import YAMLError

# What a mistake in the config, the data or the files raises, in our rooms and in torchtune's.
MISTAKES = (
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
        _check_config_file(sys.argv)
        sys.exit(main())
    except MISTAKES as err:
        if os.environ.get("KD_TRACEBACK"):
            raise
        text = " ".join(str(err).split()) or type(err).__name__
        print(f"error: {text}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _check_config_file(arguments: list[str]) -> None:
    """torchtune's parser takes for granted that the file of ``--config`` holds keys and values."""
    for flag, path in pairwise(arguments):
        if flag != "--config":
            continue
        try:
            content = OmegaConf.load(path)
        except (YAMLError, UnicodeDecodeError) as err:
            raise ValueError(f"{path}: not a YAML file: {err}") from err
        if not isinstance(content, DictConfig) or "config" in content:
            raise ValueError(f"{path}: must hold keys and values, none of them called config")
