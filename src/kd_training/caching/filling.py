"""Ask, and write the answers file by file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from kd_teachers.store.contents import HIDDEN, Contents
from kd_teachers.store.documents import Document, into_batches
from kd_teachers.store.manifest import HEAD, Manifest
from kd_teachers.store.shard import KEYS, ends_of, write_shard
from kd_training.caching.asking import Asking
from kd_training.caching.plan import Task
from kd_training.placement.one_device import Placement
from kd_training.placement.writing import on_all_ranks


def fill(directory: Path, asking: Asking, task: Task, placement: Placement) -> None:
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
    filler = files[0][1][:1] if files else []
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


def head_tensors(asking: Asking, contents: Contents) -> dict[str, Tensor]:
    """The head's weight and bias, where hidden states are kept; they may be on the meta device."""
    if contents.logits != HIDDEN:
        return {}
    head = asking.model.head()
    found = {"weight": head.weight.detach()}
    return found if head.bias is None else found | {"bias": head.bias.detach()}


def keep_head(directory: Path, asking: Asking, manifest: Manifest, placement: Placement) -> None:
    """Write the head once, whole, whatever ranks hold of it."""
    tensors = head_tensors(asking, manifest.contents)
    whole = {name: full(tensor) for name, tensor in tensors.items()}

    def write() -> None:
        if placement.rank == 0 and whole and not (directory / HEAD).exists():
            write_shard(directory / HEAD, whole)

    on_all_ranks(placement, write)


def full(tensor: Any) -> Tensor:
    """A tensor on the CPU, with the shares of other ranks."""
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.detach().cpu().contiguous()


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
