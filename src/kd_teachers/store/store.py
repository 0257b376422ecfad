"""A teacher's answers, found by what the teacher has read.

Shapes: B samples, S positions, n documents of the store.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from kd_data import Batch
from kd_losses import Head
from kd_teachers.store.contents import HIDDEN
from kd_teachers.store.manifest import HEAD, Manifest, read_manifest
from kd_teachers.store.shard import Shard, opened


class MissingDocumentError(ValueError):
    """A document that the store does not hold."""


class Store:
    """Reads a directory that kd_cache_teacher has written; nothing stays in memory but its index.

    Args:
        directory: The directory.

    Raises:
        FileNotFoundError: If it is none, or a file is missing.
        ValueError: If a file is damaged, or the directory is not finished.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.manifest: Manifest = read_manifest(directory)
        unfinished = [part for part in self.manifest.parts if not part.done]
        if unfinished or not self.manifest.parts:
            raise ValueError(
                f"teacher_cache {directory} is not finished; run kd_cache_teacher again, with the "
                "same config: it goes on where it was"
            )
        if self.keeps_hidden:
            with opened(directory / HEAD):
                pass  # whole: its end is where its beginning says
        self._shards = [Shard(directory / file) for file in self.manifest.files()]
        self._index()

    def _index(self) -> None:
        keys = [shard.keys for shard in self._shards]
        together = np.concatenate(keys)
        order = np.lexsort((together[:, 1], together[:, 0]))
        self._keys = together[order]
        sizes = [len(one) for one in keys]
        self._shard_of = np.repeat(np.arange(len(keys), dtype=np.int32), sizes)[order]
        self._place_of = np.concatenate([np.arange(size) for size in sizes])[order]

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, keys: Tensor) -> np.ndarray:
        """Number in the index of each key [n, 2]; -1 for one that is not there."""
        wanted = keys.numpy()
        found = np.searchsorted(self._keys[:, 0], wanted[:, 0])
        for i, at in enumerate(found):
            # Two texts may share the first half of their keys.
            while at < len(self._keys) and self._keys[at, 0] == wanted[i, 0]:
                if self._keys[at, 1] == wanted[i, 1]:
                    break
                at += 1
            else:
                at = -1
            found[i] = at
        return found

    def head(self) -> Head:
        """The teacher's head, on the CPU."""
        tensors = load_file(self.directory / HEAD)
        manifest = self.manifest
        return Head(tensors["weight"], tensors.get("bias"), manifest.scale, manifest.softcap)

    def read(self, batch: Batch) -> dict[str, Tensor]:
        """What is kept of a batch's documents, each tensor [B, S, numbers] with 0 in between.

        Raises:
            MissingDocumentError: If a document is not there.
        """
        entries = self.find(batch.sample_keys)
        if (entries < 0).any():
            raise MissingDocumentError(self.missing(int((entries < 0).argmax())))
        found = {}
        for name, (place, numbers, dtype) in self.manifest.contents.tensors().items():
            documents = batch.teacher_documents(place)
            rows = [self._rows(name, place, entry) for entry in entries]
            own = documents >= 0
            room = torch.zeros(*documents.shape, numbers, dtype=dtype)
            room[own] = torch.cat(rows) if rows else room.new_empty(0, numbers)
            found[name] = room
        return found

    def missing(self, number: int) -> str:
        """What to say of a document that is not there."""
        return (
            f"the teacher has not read its document {number} (counted from 0): teacher_cache "
            f"{self.directory} does not hold it; run kd_cache_teacher with this config and "
            f"cache_dir={self.directory}: it adds what is missing"
        )

    def _rows(self, name: str, place: str, entry: int) -> Tensor:
        shard = self._shards[self._shard_of[entry]]
        return shard.rows(name, place, int(self._place_of[entry]))

    def describe(self) -> str:
        """Whose answers, of how many documents, and what they take."""
        parts, contents = self.manifest.parts, self.manifest.contents
        size = sum((self.directory / file).stat().st_size for file in self.manifest.files())
        documents, tokens = (sum(getattr(p, n) for p in parts) for n in ("documents", "tokens"))
        return (
            f"{self.manifest.identity.name}, kept in {self.directory}: {contents.words()} of "
            f"{documents} documents, {tokens} tokens, {size / 1e9:.2f} GB, "
            f"{size / max(tokens, 1):.0f} bytes per token"
        )

    @property
    def keeps_hidden(self) -> bool:
        """Whether its logits are hidden states and a head."""
        return self.manifest.contents.logits == HIDDEN
