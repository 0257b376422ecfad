"""A run's config for other eyes: nothing of the environment, of secrets, or of the machine."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers import oc

from hf_models.directories import portable_path

_SECRET = re.compile(r"(.*_)?(token|api_key|password|secret)")
# An absolute path of two parts or more within a text; not what follows a host or an interpolation.
_PATH_WITHIN = re.compile(r"(?<![\w.~}/<>-])/(?:[^\s/'\"]+/)+[^\s/'\",\])}]+")


@contextmanager
def environment_unresolved() -> Iterator[None]:
    """While it lasts, ``${oc.env:NAME}`` stands for its own text, in whatever depends on it too."""
    OmegaConf.register_resolver("oc.env", _as_written, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_resolver("oc.env", oc.env, replace=True)


def _as_written(*arguments: Any) -> str:
    texts = ("null" if argument is None else str(argument) for argument in arguments)
    return f"${{oc.env:{','.join(texts)}}}"


def from_environment(cfg: DictConfig, key: str) -> bool:
    """Whether any of the value of ``key`` comes from the environment."""
    with environment_unresolved():
        return "${oc.env:" in str(OmegaConf.select(cfg, key))


class _LoggedConfig(DictConfig):
    """A config whose ``output_dir`` is a directory, although what it holds there is as written.

    Loggers write a copy of the config into that directory.
    """

    def __init__(self, cfg: DictConfig) -> None:
        # Without its types: a number's place may hold an interpolation's text.
        super().__init__(OmegaConf.to_container(cfg, resolve=False))
        self.__dict__["directory"] = cfg.output_dir

    def __getattr__(self, key: str) -> Any:
        return self.__dict__["directory"] if key == "output_dir" else super().__getattr__(key)


def log_config(logger: Any, cfg: DictConfig) -> None:
    """Tell a logger the config: resolved, but for what comes from the environment."""
    logged = _LoggedConfig(cfg)
    with environment_unresolved():
        logger.log_config(logged)


def public_config(cfg: DictConfig) -> DictConfig:
    """The config as it is written, for what is uploaded.

    Values of keys such as ``token`` are left out. Of an absolute path remains what lies below the
    current folder, or its last part.
    """
    return OmegaConf.create(_public(OmegaConf.to_container(cfg, resolve=False)))


def _public(node: Any) -> Any:
    if isinstance(node, list):
        return [_public(value) for value in node]
    if isinstance(node, dict):
        return {
            key: "removed" if value and _SECRET.fullmatch(str(key)) else _public(value)
            for key, value in node.items()
        }
    return _without_paths(node) if isinstance(node, str) else node


def _without_paths(text: str) -> str:
    if text.startswith("/") and "\n" not in text:
        return _shortened(text)
    return _PATH_WITHIN.sub(lambda found: _shortened(found[0]), text)


def _shortened(path: str) -> str:
    return portable_path(path) or Path(path).name or path
