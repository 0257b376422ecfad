"""Which documents a store is to hold, in which files: the same plan whenever it is made.

Shapes: n documents.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Origin = tuple[int, int, int]  # dataset, sample, document of the sample
Key = tuple[int, int]  # a hash of what is read, see `kd_data.tasks.keys`


@dataclass(frozen=True, slots=True)
class Document:
    """What a teacher reads by itself.

    Attributes:
        origin: Where its tokens are found again.
        key: What it is known by.
        lengths: Place → its positions.
    """

    origin: Origin
    key: Key
    lengths: dict[str, int]

    @property
    def longest(self) -> int:
        """Positions of its longest place."""
        return max(self.lengths.values())


def distinct(documents: Sequence[Document], known: set[Key]) -> list[Document]:
    """Each text once, in the order of the data, without those that are known."""
    seen, found = set(known), []
    for document in sorted(documents, key=lambda one: one.origin):
        if document.key not in seen:
            seen.add(document.key)
            found.append(document)
    return found


def digest(keys: Sequence[Key]) -> str:
    """Hash of documents' keys in their order."""
    return hashlib.sha256(np.array(keys, dtype="<i8").tobytes()).hexdigest()


def into_shards(
    documents: Sequence[Document], bytes_at: dict[str, int], shard_bytes: int
) -> list[list[Document]]:
    """Cut where a file would become larger than ``shard_bytes``; a long document is one by itself.

    Args:
        documents: In their order.
        bytes_at: Place → bytes of a position.
        shard_bytes: Size of a file.
    """
    shards: list[list[Document]] = []
    size = 0
    for document in documents:
        own = size_of([document], bytes_at)
        if not shards or size + own > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(document)
        size += own
    return shards


def size_of(documents: Sequence[Document], bytes_at: dict[str, int]) -> int:
    """Bytes that documents take."""
    return sum(
        bytes_at[p] * n for one in documents for p, n in one.lengths.items() if p in bytes_at
    )


def into_batches(documents: Sequence[Document], positions: int) -> list[list[int]]:
    """Numbers of documents that are read together: of similar length, at most so many positions."""
    order = sorted(range(len(documents)), key=lambda i: -documents[i].longest)
    batches: list[list[int]] = []
    for number in order:
        if batches:
            longest = documents[batches[-1][0]].longest
            if (len(batches[-1]) + 1) * longest <= positions:
                batches[-1].append(number)
                continue
        batches.append([number])
    return batches
