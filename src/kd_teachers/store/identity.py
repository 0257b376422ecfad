"""Who has answered: hashes of the files that make a teacher and its tokenizer."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

TEMPLATE = "chat template"
_WEIGHTS = ("*.safetensors", "*.bin", "*.pth", "*.pt")
_TOKENIZERS = ("tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json",
               "added_tokens.json")  # fmt: skip
_TOKENIZER_CONFIG = "tokenizer_config.json"
_BLOCK = 2**24


class Identity(BaseModel):
    """What answers depend on, besides the tokens.

    Attributes:
        name: The last part of the teacher's directory.
        weights: Weight file → SHA-256.
        settings: How the teacher is built: component, quantisation, dtype.
        tokenizer: File of the tokenizer, or ``chat template`` → SHA-256.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    weights: dict[str, str]
    settings: dict[str, Any]
    tokenizer: dict[str, str]

    def difference(self, other: "Identity") -> str | None:
        """The first thing in which another teacher differs, by name; None if they are one.

        What ``other`` does not know, because its files are not at hand, is not compared.
        """
        if other.weights:
            for name in sorted(self.weights.keys() | other.weights.keys()):
                if self.weights.get(name) != other.weights.get(name):
                    return f"another teacher: its weights ({name}) are not those of {self.name}"
        for name in sorted(self.settings.keys() | other.settings.keys()) if other.settings else ():
            was, now = self.settings.get(name), other.settings.get(name)
            if was != now:
                return f"another teacher: {name} was {was}, and is {now}"
        if other.tokenizer:
            for name in sorted(self.tokenizer.keys() | other.tokenizer.keys()):
                if self.tokenizer.get(name) != other.tokenizer.get(name):
                    what = name if name == TEMPLATE else f"tokenizer ({name})"
                    return f"another {what} than the texts were made with"
        return None


def weight_hashes(
    directory: Path, files: Iterable[str] | None = None, quiet: bool = False
) -> dict[str, str]:
    """Weight file → SHA-256 of all of it; empty where the directory is not there.

    Args:
        directory: The teacher's.
        files: Names of the files; None for all that hold weights.
        quiet: Without a progress bar.
    """
    if files is None:
        paths = sorted({path for pattern in _WEIGHTS for path in directory.glob(pattern)})
    else:
        paths = [directory / name for name in files if (directory / name).is_file()]
    bar = tqdm(
        total=sum(path.stat().st_size for path in paths),
        desc="the teacher's files",
        unit="B",
        unit_scale=True,
        delay=2,
        leave=False,
        dynamic_ncols=True,
        disable=quiet,
    )
    with bar:
        return {path.name: _sha256(path, bar.update) for path in paths}


def _sha256(path: Path, advance: Any) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            hasher.update(block)
            advance(len(block))
    return hasher.hexdigest()


def tokenizer_hashes(arguments: Mapping[str, Any]) -> dict[str, str]:
    """File of a tokenizer → SHA-256; the chat template has a name of its own.

    Args:
        arguments: Those of the tokenizer in the config: ``checkpoint_dir``, or torchtune's own
            ``path``, ``merges_file`` and the like.
    """
    found: dict[str, str] = {}
    for value in arguments.values():
        path = Path(value) if isinstance(value, str) else None
        if path is not None and path.is_dir():
            found |= _of_directory(path)
        elif path is not None and path.is_file():
            found[path.name] = _digest(path.read_bytes())
    if (template := arguments.get("prompt_template")) is not None:
        found[TEMPLATE] = _digest(str(template).encode())
    return found


def _of_directory(directory: Path) -> dict[str, str]:
    found = {}
    for path in sorted({p for pattern in _TOKENIZERS for p in directory.glob(pattern)}):
        if path.is_file() and path.name != _TOKENIZER_CONFIG:
            found[path.name] = _digest(path.read_bytes())
    config = directory / _TOKENIZER_CONFIG
    settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    templates = [settings.pop("chat_template", None)]
    templates += [p.read_text(encoding="utf-8") for p in sorted(directory.glob("chat_template*"))]
    found[TEMPLATE] = _digest(json.dumps(templates).encode())
    found[_TOKENIZER_CONFIG] = _digest(json.dumps(settings, sort_keys=True).encode())
    return found


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
