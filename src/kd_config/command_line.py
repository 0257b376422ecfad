"""A person's mistake ends in one line, not in a traceback."""

import difflib
import gc
import os
import signal
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from hf_models.missing import missing

# What a mistake in the config, the data or the files raises, in our rooms and in torchtune's.
MISTAKES = (
    ValueError,
    OSError,
    FloatingPointError,
    OmegaConfBaseException,
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
        if not Path(path).exists() or Path(path).is_dir():
            raise FileNotFoundError(_no_config(Path(path)))
        try:
            content = OmegaConf.load(path)
        except (YAMLError, UnicodeDecodeError) as err:
            raise ValueError(f"{path}: not a YAML file: {err}") from err
        if not isinstance(content, DictConfig) or not content or "config" in content:
            raise ValueError(f"{path}: must hold keys and values, none of them called config")
        for override in arguments:
            if "=" in override and not override.startswith(("-", "~")):
                _check_override(content, override)


def _no_config(path: Path) -> str:
    """That there is no such config, where it was looked for, and what may have been meant."""
    if path.is_dir():
        names = ", ".join(sorted(map(str, path.glob("*.y*ml")))) or "there are none"
        return f"--config {path}: a directory; name one of the YAML files in it: {names}"
    places = (path.parent, Path(), Path("configs"))
    by_name = {file.stem: str(file) for place in places for file in place.glob("*.y*ml")}
    near = difflib.get_close_matches(path.stem, by_name, n=3, cutoff=0.5)
    remedy = "check the path, or start from the folder that it belongs to"
    if near:
        remedy = f"did you mean {' or '.join(by_name[name] for name in near)}?"
    return f"--config {missing(path, 'file', remedy)}"


def _check_override(content: DictConfig, override: str) -> None:
    key, _, value = override.partition("=")
    node = content[key] if key in content and not OmegaConf.is_missing(content, key) else None
    if isinstance(node, DictConfig) and "_component_" in node:  # as torchtune's parser reads it
        key = f"{key}._component_"
    try:
        OmegaConf.merge(content, OmegaConf.from_dotlist([f"{key}={value}"]))
    except YAMLError as err:
        raise ValueError(f"command line: {override}: not YAML: {err}") from err
    except TypeError as err:  # what OmegaConf raises for containers of different kinds
        raise ValueError(
            f"command line: {override}: a list cannot take the place of keys, nor keys that of a "
            "list; change the config file"
        ) from err
