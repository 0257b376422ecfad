"""Ask a config's teacher about every text of its datasets once, and keep the answers."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torchtune import training
from tqdm import tqdm

from hf_models.model import Model
from kd_config.check import check_config, typed
from kd_config.components import argument
from kd_config.schema import RunConfig
from kd_config.weights import loss_weights
from kd_data import Batch
from kd_data.loaders import collate_with
from kd_data.samples import alone, build_dataset, build_tokenizer
from kd_teachers import Needs, Teacher
from kd_teachers.store.contents import HIDDEN, Contents
from kd_teachers.store.documents import Document, into_batches
from kd_teachers.store.manifest import HEAD, Manifest, write_manifest
from kd_teachers.store.shard import KEYS, ends_of, write_shard
from kd_teachers.store.store import Store
from kd_training import build
from kd_training.build_teacher import build_asked
from kd_training.cache_contents import contents_of
from kd_training.cache_plan import Task, find_documents, finish, plan_task
from kd_training.identity import identity_of
from kd_training.objective.parts import Parts
from kd_training.objective.registry import build_terms
from kd_training.output import directory as output
from kd_training.output.lock import locked
from kd_training.placement.one_device import Placement
from kd_training.placement.writing import on_all_ranks
from kd_training.preflight import estimates, same_model
from kd_training.preflight.same_task import check_same_task
from kd_training.preflight.two_tokenizers import check_two_tokenizers

_LEAST_POSITIONS = 2048  # that are read together
_MB = 10**6


@dataclass(frozen=True)
class Asking:
    """Who is asked, what, and about which samples.

    Attributes:
        teacher: Who.
        model: The model that answers, on the meta device until it is loaded.
        student: The student that it is to be loaded with, where it is its base; else None.
        needs: What of its answers.
        datasets: Samples in the teacher's tokens, by the config's key.
        to_batch: Makes a batch of them.
        positions: At most so many are read together.
    """

    teacher: Teacher
    model: Model
    student: tuple[Model, Any] | None
    needs: Needs
    datasets: Mapping[str, Any]
    to_batch: Callable[[Sequence[Any]], Batch]
    positions: int

    def load(self, placement: Placement) -> None:
        """Read the weights."""
        if self.student is not None:
            placement.place(*self.student)
        self.teacher.load(placement)

    def batch(self, documents: Sequence[Document]) -> Batch:
        """What the teacher reads of some documents."""
        names = list(self.datasets)
        origins = (one.origin for one in documents)
        samples = [alone(self.datasets[names[d]][sample])[number] for d, sample, number in origins]
        return self.to_batch(samples)


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
    output.check_writable(directory)
    output.check_shared(directory, placement)
    with locked(directory, "cache_dir") if placement.rank == 0 else nullcontext():
        asking, wanted = _prepare(config, placement)
        found = find_documents(asking.datasets, asking.to_batch, wanted.contents, placement)
        task = _plan(directory, config, wanted, found, asking, placement)
        if placement.rank == 0:
            _say(directory, task)
        if task.files:
            asking.load(placement)
            _keep_head(directory, asking, task.manifest, placement)
            _fill(directory, asking, task, placement)
        if placement.rank == 0:
            if task.files or not all(part.done for part in task.manifest.parts):
                finish(directory, task.manifest)
            print(f"kept: {Store(directory).describe()}")


def _directory(config: RunConfig) -> Path:
    directory = config.cache_dir or config.teacher_cache
    if directory is None:
        raise ValueError("config: cache_dir is not set; name the directory to write the cache to")
    return Path(directory)


def _prepare(config: RunConfig, placement: Placement) -> tuple[Asking, Manifest]:
    """Everything but weights, and the manifest without parts."""
    training.set_seed(config.seed)
    dtype = training.get_dtype(config.dtype, device=placement.device)
    student = build.build_student(config, dtype)
    asked = build_asked(config, student, dtype)
    ignore = build.ignore_index(config)
    parts = Parts(
        config, loss_weights(config), student.facts, lambda: asked.teacher, placement.device, ignore
    )
    needs = _needs(config, parts)
    contents = contents_of(config, needs, asked.model, student.facts.outputs, dtype)
    facts = {asked.key: asked.model.facts}
    check_same_task(config, student.facts, facts)
    estimates.check_length(config, student.facts, facts)
    same_model.check_model_configs(config, asked.teacher.members())
    own = build_tokenizer(config.tokenizer, "tokenizer")
    theirs = build_tokenizer(config.teacher_tokenizer, "teacher_tokenizer")
    same_model.check_tokenizers(config, student.facts, facts, own, theirs)
    tokenizer = own if theirs is None else theirs
    datasets = {
        key: build_dataset(node, tokenizer, key, ignore, asked.model.facts)
        for key, node in (("dataset", config.dataset), ("dataset_val", config.dataset_val))
        if node is not None
    }
    length = argument(config.tokenizer, "max_seq_len") or 0
    asking = Asking(
        asked.teacher,
        asked.model,
        asked.student,
        Needs(contents.places[:1] == ["logits"], needs.taps),
        datasets,
        collate_with(asked.model.facts, tokenizer, None, ignore),
        max(_LEAST_POSITIONS, config.batch_size * length),
    )
    identity = identity_of(config, *asked.nodes, placement)
    head = asked.model.head()
    manifest = Manifest(
        identity=identity,
        facts=asked.model.facts,
        contents=contents,
        scale=head.scale,
        softcap=head.softcap,
    )
    return asking, manifest


def _needs(config: RunConfig, parts: Parts) -> Needs:
    """What the terms ask in any epoch: a mapping may draw other layers in each."""
    terms = build_terms(parts)
    check_two_tokenizers(parts, terms)
    needs = Needs()
    for epoch in range(config.epochs):
        for term in terms:
            term.start_epoch(epoch)
            needs = needs | term.needs
    return needs


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
        for leftover in directory.glob(".*.partial"):
            leftover.unlink()
        head = _head_tensors(asking, wanted.contents)
        size = sum(tensor.nbytes for tensor in head.values())
        task = plan_task(directory, wanted, documents, config.cache.shard_mb * _MB, size)
        write_manifest(directory, task.manifest)
        return task

    task = placement.gather(on_all_ranks(placement, plan))[0]
    assert isinstance(task, Task)
    return task


def _say(directory: Path, task: Task) -> None:
    contents = task.manifest.contents
    per_position = ", ".join(f"{contents.bytes_at(p)} at {p}" for p in contents.places)
    print(f"keeps {contents.words()} in {directory}: bytes per position: {per_position}")
    documents = sum(map(len, task.files.values()))
    if not documents:
        print("all documents are there already")
        return
    print(
        f"to read: {documents} documents, {task.tokens} tokens; to write: {task.size / 1e9:.3f} GB "
        f"in {len(task.files)} files"
    )


def _head_tensors(asking: Asking, contents: Contents) -> dict[str, Tensor]:
    if contents.logits != HIDDEN:
        return {}
    head = asking.model.head()
    found = {"weight": head.weight.detach()}
    return found if head.bias is None else found | {"bias": head.bias.detach()}


def _keep_head(directory: Path, asking: Asking, manifest: Manifest, placement: Placement) -> None:
    """Write the head once, whole, whatever ranks hold of it."""
    tensors = _head_tensors(asking, manifest.contents)
    whole = {name: full(tensor) for name, tensor in tensors.items()}

    def write() -> None:
        if placement.rank == 0 and whole and not (directory / HEAD).exists():
            write_shard(directory / HEAD, whole)

    on_all_ranks(placement, write)


def full(tensor: Any) -> Tensor:
    """A tensor on the CPU, with the shares of other ranks."""
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.detach().cpu().contiguous()


def _fill(directory: Path, asking: Asking, task: Task, placement: Placement) -> None:
    """Make the files in rounds, in each of which every rank has one, or none any more."""
    contents, files = task.manifest.contents, list(task.files.items())
    bar = tqdm(
        total=task.tokens,
        desc="teacher",
        unit="tok",
        unit_scale=True,
        dynamic_ncols=True,
        disable=placement.rank != 0,
    )
    filler = files[0][1][:1]
    with bar:
        for first in range(0, len(files), placement.world_size):
            own = files[first + placement.rank :][:1] if first + placement.rank < len(files) else []
            name, documents = own[0] if own else ("", [])
            batches = into_batches(documents, asking.positions)
            room = Room(contents, documents)
            # A sharded teacher runs on all ranks or on none.
            for i in range(max(placement.gather(len(batches)))):
                chosen = batches[i] if i < len(batches) else []
                read = [documents[j] for j in chosen] or filler
                batch = asking.batch(read).to(placement.device)
                rows = contents.of_signal(asking.teacher.signal(batch, asking.needs), batch)
                if chosen:
                    room.put(chosen, rows)
                    bar.update(sum(documents[j].longest for j in chosen))

            def write(name: str = name, room: Room = room) -> None:
                if name:
                    write_shard(directory / name, room.tensors)

            on_all_ranks(placement, write)
            bar.set_postfix_str(f"{_written(directory, files) / 1e9:.2f} GB")


def _written(directory: Path, files: Sequence[tuple[str, Any]]) -> int:
    paths = (directory / name for name, _ in files)
    return sum(path.stat().st_size for path in paths if path.exists())


class Room:
    """The tensors of one file, filled document by document.

    Args:
        contents: What is kept.
        documents: Of the file, in their order.
    """

    def __init__(self, contents: Contents, documents: Sequence[Document]) -> None:
        self._contents = contents
        self._lengths = {p: [one.lengths[p] for one in documents] for p in contents.places}
        self._ends = {p: torch.tensor(n).cumsum(0).long() for p, n in self._lengths.items()}
        self.tensors = {KEYS: torch.tensor([one.key for one in documents]).view(-1, 2)}
        self.tensors |= {ends_of(p): ends for p, ends in self._ends.items()}
        for name, (place, numbers, dtype) in contents.tensors().items():
            rows = sum(self._lengths[place])
            self.tensors[name] = torch.empty(rows, numbers, dtype=dtype)

    def put(self, chosen: Sequence[int], rows: Mapping[str, Tensor]) -> None:
        """Take the rows of these documents, which come one after the other."""
        for name, (place, _, _) in self._contents.tensors().items():
            lengths = [self._lengths[place][number] for number in chosen]
            for number, part in zip(chosen, rows[name].split(lengths), strict=True):
                end = int(self._ends[place][number])
                self.tensors[name][end - len(part) : end] = part
