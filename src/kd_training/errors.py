"""A person's mistake ends in one line, not in a traceback."""

import gc
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torchtune.config._errors import ConfigError, InstantiationError
from torchtune.config._utils import _merge_yaml_and_cli_args
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
    # What was imported stays until the end: no collection needs to walk over it again. Only once,
    # or what an earlier call has left would never be freed.
    if not gc.get_freeze_count():
        gc.freeze()
    try:
        _check_arguments(sys.argv)
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


def _check_arguments(arguments: list[str]) -> None:
    """torchtune's parser takes for granted that file and overrides hold what they should."""
    for flag, path in pairwise(arguments):
        if flag != "--config":
            continue
        try:
            content = OmegaConf.load(path)
        except (YAMLError, UnicodeDecodeError) as err:
            raise ValueError(f"{path}: not a YAML file: {err}") from err
        if not isinstance(content, DictConfig) or not content or "config" in content:
            raise ValueError(f"{path}: must hold keys and values, none of them called config")
        for override in arguments:
            if "=" in override and not override.startswith(("-", "~")):
                _check_override(content, override)


def _check_override(content: DictConfig, override: str) -> None:
    values: Any = OmegaConf.to_container(content, resolve=False)
    try:
        _merge_yaml_and_cli_args(Namespace(**values), [override])
    except YAMLError as err:
        raise ValueError(f"command line: {override}: not YAML: {err}") from err
    except TypeError as err:  # what OmegaConf raises for containers of different kinds
        raise ValueError(
            f"command line: {override}: a list cannot take the place of keys, nor keys that of a "
            "list; change the config file"
        ) from err
