"""What kd_cache_teacher will write, found out before a weight of the teacher is read."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kd_data import Batch
from kd_data.samples import alone
from kd_teachers.store.contents import Contents
from kd_teachers.store.documents import Document, size_of
from kd_teachers.store.manifest import (
    FILE,
    HEAD,
    PARTIAL,
    Manifest,
    read_manifest,
    write_manifest,
)
from kd_teachers.store.parts import as_it_is, goes_on, next_part
from kd_training.output.directory import nearest_existing
from kd_training.output.lock import LOCK_FILE
from kd_training.placement.one_device import Placement

_ROOM = 1.01  # names, keys, the manifest
_GB = 1e9
_NOT_YET = (LOCK_FILE, PARTIAL)  # all that there may be before a manifest


@dataclass(frozen=True)
class Task:
    """Files to make.

    Attributes:
        manifest: The store's, with the part that they belong to.
        files: Name → the documents in it, of those that are not there yet.
        head: Whether the head is not there yet either.
        size: Bytes of them, about.
        tokens: Positions to read for them.
    """

    manifest: Manifest
    files: dict[str, list[Document]]
    head: bool
    size: int
    tokens: int


def find_documents(
    datasets: Mapping[str, Any],
    to_batch: Callable[[Sequence[Any]], Batch],
    contents: Contents,
    placement: Placement,
) -> list[Document]:
    """Every document of the datasets; each rank reads its share of the samples."""
    own = []
    for number, (key, dataset) in enumerate(datasets.items()):
        share = tqdm(
            range(placement.rank, len(dataset), placement.world_size),
            desc=f"looks through {key}",
            delay=2,  # seconds
            leave=False,
            dynamic_ncols=True,
            disable=placement.rank != 0,
        )
        for sample in share:
            for i, document in enumerate(alone(dataset[sample])):
                batch = to_batch([document])
                key_of = tuple(batch.sample_keys[0].tolist())
                lengths = {p: int((batch.documents[p] >= 0).sum()) for p in contents.places}
                own.append(Document((number, sample, i), key_of, lengths))
    return [document for part in placement.gather(own) for document in part]


def plan_task(
    directory: Path,
    wanted: Manifest,
    documents: Sequence[Document],
    shard_bytes: int,
    head_bytes: int,
) -> Task:
    """What a directory lacks of the documents.

    Args:
        directory: The store's; it need not exist.
        wanted: A manifest without parts, of what is to be kept.
        documents: All that the store is to hold.
        shard_bytes: Size of a file.
        head_bytes: Size of the head; 0 if it is not kept.

    Raises:
        ValueError: If the directory is another store, a file of it is damaged, or the disk is too
            small.
    """
    manifest = _continued(directory, wanted)
    # A file that somebody has removed is missed like one that was never made.
    done = [as_it_is(directory, part) for part in manifest.parts if part.done]
    unfinished = [part for part in manifest.parts if not part.done]
    part, shards = next_part(directory, wanted.contents, done, documents, shard_bytes)
    if any(not goes_on(directory, last, part, shards) for last in unfinished):
        done += [as_it_is(directory, last) for last in unfinished]
        part, shards = next_part(directory, wanted.contents, done, documents, shard_bytes)
    named = zip(part.files, shards, strict=True)
    files = {name: shard for name, shard in named if not (directory / name).exists()}
    missing = [document for shard in files.values() for document in shard]
    head = head_bytes > 0 and not (directory / HEAD).exists()
    size = size_of(missing, wanted.contents.position_bytes()) + head * head_bytes
    _check_room(directory, size)
    parts = [*done, part] if shards else done
    manifest = manifest.model_copy(update={"parts": parts})
    return Task(manifest, files, head, size, sum(one.longest for one in missing))


def _continued(directory: Path, wanted: Manifest) -> Manifest:
    if not (directory / FILE).exists():
        if directory.is_dir() and any(path.name not in _NOT_YET for path in directory.iterdir()):
            raise ValueError(
                f"config: cache_dir {directory} holds other things than a teacher's cache; choose "
                "another, or a new one"
            )
        return wanted
    found = read_manifest(directory)
    difference = found.identity.difference(wanted.identity)
    if difference is not None:
        raise ValueError(
            f"config: cache_dir {directory} was made with {difference}; choose another cache_dir"
        )
    if found.contents != wanted.contents:
        raise ValueError(
            f"config: cache_dir {directory} keeps {found.contents.words()}, and this config asks "
            f"for {wanted.contents.words()} (or in another type); choose another cache_dir"
        )
    return found


def _check_room(directory: Path, size: int) -> None:
    free = shutil.disk_usage(nearest_existing(directory)).free
    if size * _ROOM > free:
        raise ValueError(
            f"config: cache_dir {directory} needs {size * _ROOM / _GB:.3g} GB, but "
            f"{free / _GB:.3g} GB are free; choose another disk, or cache.logits=top_k, which "
            "takes less"
        )


def finish(directory: Path, manifest: Manifest) -> None:
    """Note that all files of the last part are there."""
    last = manifest.parts[-1].model_copy(update={"done": True})
    write_manifest(directory, manifest.model_copy(update={"parts": [*manifest.parts[:-1], last]}))
