"""What the parts of a store hold, and what the next one is to."""

from collections.abc import Sequence
from pathlib import Path

from kd_teachers.store.contents import Contents
from kd_teachers.store.documents import Document, digest, distinct, into_shards
from kd_teachers.store.manifest import Part
from kd_teachers.store.shard import Shard


def next_part(
    directory: Path,
    contents: Contents,
    done: Sequence[Part],
    documents: Sequence[Document],
    shard_bytes: int,
) -> tuple[Part, list[list[Document]]]:
    """The part of all documents that those before it do not hold, and what is in its files.

    Args:
        directory: The store's.
        contents: What is kept of each document.
        done: The finished parts.
        documents: All that the store is to hold.
        shard_bytes: Size of a file.

    Raises:
        ValueError: If a file is damaged.
    """
    files = [file for part in done for file in part.files]
    known = {key for file in files for key in Shard(directory / file).documents()}
    todo = distinct(documents, known)
    shards = into_shards(todo, contents.position_bytes(), shard_bytes)
    part = Part(
        documents=len(todo),
        tokens=sum(one.longest for one in todo),
        digest=digest([one.key for one in todo]),
        files=[f"part-{len(done):03d}-{i:05d}.safetensors" for i in range(len(shards))],
    )
    return part, shards


def goes_on(directory: Path, last: Part, part: Part, shards: Sequence[Sequence[Document]]) -> bool:
    """Whether the files of an unfinished part belong to this one: the same texts, the same cuts.

    Raises:
        ValueError: If a file is damaged.
    """
    return last == part and all(
        Shard(directory / name).documents() == [one.key for one in shard]
        for name, shard in zip(part.files, shards, strict=True)
        if (directory / name).exists()
    )


def as_it_is(directory: Path, part: Part) -> Part:
    """The part with those of its files that are there, and finished.

    Raises:
        ValueError: If a file is damaged.
    """
    files = [file for file in part.files if (directory / file).exists()]
    if part.done and files == part.files:
        return part
    shards = [Shard(directory / file) for file in files]
    keys = [key for shard in shards for key in shard.documents()]
    tokens = sum(shard.longest() for shard in shards)
    return Part(documents=len(keys), tokens=tokens, digest=digest(keys), files=files, done=True)
