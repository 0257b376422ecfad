"""What a store's manifest.json says."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from hf_models.missing import missing
from hf_models.model import ModelFacts
from kd_teachers.store.contents import Contents
from kd_teachers.store.identity import Identity

FILE = "manifest.json"
PARTIAL = f".{FILE}.partial"  # while it is written
HEAD = "head.safetensors"
_VERSION = 1
REMEDY = "make it with tune run kd_cache_teacher --config X.yaml cache_dir="


class _Versioned(BaseModel):
    version: int = _VERSION


class Part(BaseModel):
    """Documents that one call of kd_cache_teacher has added.

    Attributes:
        documents: Number of them.
        tokens: Positions that the teacher has read of them.
        digest: Hash of their keys, in their order.
        files: Names of the files that they are in.
        done: Whether all of them are there.
    """

    documents: int
    tokens: int
    digest: str
    files: list[str]
    done: bool = False


class Manifest(BaseModel):
    """What a store is.

    Attributes:
        identity: Who has answered.
        facts: Sizes of that model.
        contents: What is kept.
        scale: Of the head, see `kd_losses.Head`.
        softcap: Of the head.
        parts: What it is made of.
        version: Of this format.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    identity: Identity
    facts: ModelFacts
    contents: Contents
    scale: float = 1.0
    softcap: float | None = None
    parts: list[Part] = []
    version: int = _VERSION

    def files(self) -> list[str]:
        """Names of the files of all finished parts."""
        return [file for part in self.parts if part.done for file in part.files]


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a store.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged or of another version.
    """
    path = directory / FILE
    if not path.is_file():
        raise FileNotFoundError(f"teacher_cache {missing(path, 'file', f'{REMEDY}{directory}')}")
    try:
        text = path.read_text(encoding="utf-8")
        # First: what else another version says is not known.
        version = _Versioned.model_validate_json(text).version
        manifest = Manifest.model_validate_json(text) if version == _VERSION else None
    except (ValidationError, UnicodeDecodeError) as err:
        first = " ".join(str(err).split())[:200]
        raise ValueError(f"{path}: no manifest of a teacher's cache: {first}") from err
    if manifest is None:
        raise ValueError(
            f"{path}: version {version}, but this program reads {_VERSION}; make another in a "
            "directory of its own with tune run kd_cache_teacher"
        )
    return manifest


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write it; it is the old one or the new one at any moment.

    Raises:
        OSError: If it cannot be written.
    """
    partial = directory / PARTIAL
    partial.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    partial.replace(directory / FILE)
