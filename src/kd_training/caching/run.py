"""What kd_cache_teacher does: ask a config's teacher about every text once, keep the answers."""

from contextlib import nullcontext
from pathlib import Path

from omegaconf import DictConfig

from kd_config.check import check_config, typed
from kd_config.schema import RunConfig
from kd_teachers.store.documents import Document
from kd_teachers.store.manifest import Manifest, write_manifest
from kd_teachers.store.store import Store
from kd_training.caching.asking import Asking, prepare_asking
from kd_training.caching.filling import fill, head_tensors, keep_head
from kd_training.caching.plan import Task, find_documents, finish, plan_task
from kd_training.output import directory as output
from kd_training.output.lock import locked
from kd_training.placement.one_device import Placement
from kd_training.placement.writing import on_all_ranks

_MB = 10**6


def cache_teacher(cfg: DictConfig, placement: Placement) -> None:
    """Write the store of a config into its ``cache_dir``, or what is missing of it.

    A file of it is there as a whole or not at all: after any end the same call goes on, and comes
    to the same files.

    Raises:
        ValueError: If the config, the models, the data or the directory do not fit.
        OSError: If a file is missing, unreadable or cannot be written.
    """
    config = typed(check_config(cfg))
    directory = _directory(config)
    output.check_writable(directory, "cache_dir")
    output.check_shared(directory, placement, "cache_dir")
    with locked(directory, "cache_dir") if placement.rank == 0 else nullcontext():
        asking, wanted = prepare_asking(config, placement)
        found = find_documents(asking.datasets, asking.to_batch, wanted.contents, placement)
        task = _plan(directory, config, wanted, found, asking, placement)
        if placement.rank == 0:
            _say(directory, task)
        if task.files or task.head:
            asking.load(placement)
            keep_head(directory, asking, task.manifest, placement)
            fill(directory, asking, task, placement)
        if placement.rank == 0:
            if not all(part.done for part in task.manifest.parts):
                finish(directory, task.manifest)
            print(f"kept: {Store(directory).describe()}")


def _directory(config: RunConfig) -> Path:
    directory = config.cache_dir or config.teacher_cache
    if directory is None:
        raise ValueError("config: cache_dir is not set; name the directory to write the cache to")
    return Path(directory)


def _plan(
    directory: Path,
    config: RunConfig,
    wanted: Manifest,
    documents: list[Document],
    asking: Asking,
    placement: Placement,
) -> Task:
    """Rank 0 looks at the directory and writes the manifest; all get the same task."""

    def plan() -> Task | None:
        if placement.rank > 0:
            return None
        head = head_tensors(asking, wanted.contents)
        size = sum(tensor.nbytes for tensor in head.values())
        task = plan_task(directory, wanted, documents, config.cache.shard_mb * _MB, size)
        for leftover in directory.glob(".*.partial"):  # not before it is seen to be a cache
            leftover.unlink()
        write_manifest(directory, task.manifest)
        return task

    task = placement.gather(on_all_ranks(placement, plan))[0]
    assert isinstance(task, Task)
    return task


def _say(directory: Path, task: Task) -> None:
    contents = task.manifest.contents
    per_position = ", ".join(f"{n} at {place}" for place, n in contents.position_bytes().items())
    print(f"keeps {contents.words()} in {directory}: bytes per position: {per_position}")
    documents = sum(map(len, task.files.values()))
    if not documents:
        print("all documents are there already" + (", but not the head" if task.head else ""))
        return
    print(
        f"to read: {documents} documents, {task.tokens} tokens; to write: {task.size / 1e9:.3f} GB "
        f"in {len(task.files)} files"
    )
