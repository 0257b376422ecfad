"""A directory's tokenizer, and whether two directories mean the same tokens by their ids."""

import filecmp
import logging
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from hf_models.missing import missing

_log = logging.getLogger(__name__)

_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# With these a directory's tokenizer is complete.
_TOKENIZER_FILES = (
    *_VOCABULARY_FILES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def has_tokenizer(checkpoint_dir: str | Path) -> bool:
    """Whether a directory has tokenizer files."""
    return any((Path(checkpoint_dir) / name).is_file() for name in _VOCABULARY_FILES)


def load_tokenizer(checkpoint_dir: str | Path) -> Any:
    """The transformers tokenizer of a local directory, without network or remote code.

    Raises:
        FileNotFoundError: If the directory or its tokenizer files are missing.
        ValueError: If they cannot be read; the message names the directory.
    """
    if not Path(checkpoint_dir).is_dir():
        raise FileNotFoundError(missing(checkpoint_dir, "model directory"))
    if not has_tokenizer(checkpoint_dir):
        raise FileNotFoundError(
            f"{checkpoint_dir} has no tokenizer files (any of {', '.join(_VOCABULARY_FILES)})"
        )
    try:
        return AutoTokenizer.from_pretrained(
            checkpoint_dir, local_files_only=True, trust_remote_code=False
        )
    except Exception as err:  # a damaged file may raise anything, and seldom says which it is
        raise ValueError(
            f"the tokenizer files of {checkpoint_dir} (tokenizer.json, tokenizer_config.json, ...) "
            f"cannot be read ({type(err).__name__}: {err}); get them again from where the model is"
        ) from err


def vocabulary_mismatch(dir_a: str | Path, dir_b: str | Path) -> str | None:
    """Compare two directories' tokenizers over the ids that both define.

    Ids that only one side defines are no disagreement: vocabularies are often padded or extended.

    Returns:
        One line with the first disagreements, or None if there are none. Also None, with a logged
        warning, if a directory has no tokenizer files to compare (see ``has_tokenizer``).
    """
    for directory in (dir_a, dir_b):
        if not has_tokenizer(directory):
            _log.warning("%s has no tokenizer files: vocabularies not compared", directory)
            return None
    if _same_files(Path(dir_a), Path(dir_b)):
        return None  # a student has its teacher's files as a rule: neither needs to be loaded
    a, b = (
        {index: token for token, index in load_tokenizer(directory).get_vocab().items()}
        for directory in (dir_a, dir_b)
    )
    different = sorted(index for index in a.keys() & b.keys() if a[index] != b[index])
    if not different:
        return None
    shown = ", ".join(f"id {i} is {a[i]!r} and {b[i]!r}" for i in different[:3])
    return f"{len(different)} ids differ between {dir_a} and {dir_b}: {shown}"


def _same_files(dir_a: Path, dir_b: Path) -> bool:
    """Whether two directories' tokenizer files are the same, byte by byte."""
    pairs = [(dir_a / name, dir_b / name) for name in _TOKENIZER_FILES]
    there = [(a, b) for a, b in pairs if a.exists() or b.exists()]
    return all(a.exists() and b.exists() and filecmp.cmp(a, b, shallow=False) for a, b in there)
