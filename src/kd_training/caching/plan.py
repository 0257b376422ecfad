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
from kd_teachers.store.documents import (
    Document,
    digest,
    distinct,
    into_shards,
    size_of,
)
from kd_teachers.store.manifest import (
    FILE,
    HEAD,
    Manifest,
    Part,
    read_manifest,
    write_manifest,
)
from kd_teachers.store.shard import Shard
from kd_training.output.directory import nearest_existing
from kd_training.placement.one_device import Placement

_ROOM = 1.01  # names, keys, the manifest
_GB = 1e9


@dataclass(frozen=True)
class Task:
    """Files to make.

    Attributes:
        manifest: The store's, with the part that they belong to.
        files: Name → the documents in it, of those that are not there yet.
        size: Bytes of them, about.
        tokens: Positions to read for them.
    """

    manifest: Manifest
    files: dict[str, list[Document]]
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
        head_bytes: Size of the head, if it is kept.

    Raises:
        ValueError: If the directory is another store, or the disk is too small.
    """
    manifest = _continued(directory, wanted)
    bytes_at = {place: wanted.contents.bytes_at(place) for place in wanted.contents.places}
    todo = distinct(documents, _known(directory, manifest))
    if manifest.parts and not manifest.parts[-1].done and manifest.parts[-1].digest != digest(todo):
        manifest = _closed(directory, manifest)
        todo = distinct(documents, _known(directory, manifest))
    shards = into_shards(todo, bytes_at, shard_bytes)
    if todo and (not manifest.parts or manifest.parts[-1].done):
        number = len(manifest.parts)
        part = Part(
            documents=len(todo),
            tokens=sum(one.longest for one in todo),
            digest=digest(todo),
            files=[f"part-{number:03d}-{i:05d}.safetensors" for i in range(len(shards))],
        )
        manifest = manifest.model_copy(update={"parts": [*manifest.parts, part]})
    names = manifest.parts[-1].files if todo else []
    files = {n: s for n, s in zip(names, shards, strict=True) if not (directory / n).exists()}
    missing = [document for shard in files.values() for document in shard]
    size = size_of(missing, bytes_at) + (0 if (directory / HEAD).exists() else head_bytes)
    _check_room(directory, size)
    return Task(manifest, files, size, sum(one.longest for one in missing))


def _known(directory: Path, manifest: Manifest) -> set[tuple[int, int]]:
    keys = (Shard(directory / file).keys.tolist() for file in manifest.files())
    return {(first, second) for shard in keys for first, second in shard}


def _continued(directory: Path, wanted: Manifest) -> Manifest:
    if not (directory / FILE).exists():
        if directory.is_dir() and any(p.name != ".lock" for p in directory.iterdir()):
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


def _closed(directory: Path, manifest: Manifest) -> Manifest:
    """The manifest with its unfinished part finished as it is, as others are asked for now."""
    last = manifest.parts[-1]
    files = [file for file in last.files if (directory / file).exists()]
    shards = [Shard(directory / file) for file in files]
    kept = last.model_copy(
        update={
            "documents": sum(map(len, shards)),
            "tokens": sum(shard.longest() for shard in shards),
            "files": files,
            "done": True,
        }
    )
    return manifest.model_copy(update={"parts": [*manifest.parts[:-1], kept]})


def _check_room(directory: Path, size: int) -> None:
    free = shutil.disk_usage(nearest_existing(directory)).free
    if size * _ROOM > free:
        raise ValueError(
            f"config: cache_dir {directory} needs {size * _ROOM / _GB:.1f} GB, but "
            f"{free / _GB:.1f} GB are free; choose another disk, or cache.logits=top_k, which "
            "takes less"
        )


def finish(directory: Path, manifest: Manifest) -> None:
    """Note that all files of the last part are there."""
    last = manifest.parts[-1].model_copy(update={"done": True})
    write_manifest(directory, manifest.model_copy(update={"parts": [*manifest.parts[:-1], last]}))
