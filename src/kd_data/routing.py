"""Which of several teachers a text is for: the column ``teacher`` of its dataset."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import Dataset
from torchtune.datasets import ConcatDataset, PackedDataset

from kd_data.batch import Batch
from kd_data.datasets.mixture import MixtureDataset

COLUMN, ROUTE = "teacher", "route"  # of the data; of a sample: the teacher's number


def named_teachers(dataset: Any) -> list[str | None] | None:
    """Each sample's teacher, as its row says; None where no row says one.

    Raises:
        ValueError: If rows that say one are packed: a packed row does not know its texts' rows.
    """
    if isinstance(dataset, PackedDataset):
        if named_teachers(dataset.ds) is not None:
            raise ValueError(
                f"its rows have a column {COLUMN}, which packing loses; leave packed out, and set "
                "group_by_length: true instead"
            )
        return None
    if isinstance(dataset, MixtureDataset):
        return _drawn(dataset)
    if isinstance(dataset, ConcatDataset):
        return _joined(dataset._datasets)
    # Where torchtune's datasets, and ours, keep their table or what they wrap.
    for name in ("_data", "_table", "_rows", "_dataset"):
        inner = getattr(dataset, name, None)
        if COLUMN in (getattr(inner, "column_names", None) or ()):
            assert inner is not None
            return list(inner[COLUMN])
        if name in ("_rows", "_dataset") and inner is not None:
            return named_teachers(inner)
    return None


def _drawn(mixed: MixtureDataset) -> list[str | None] | None:
    found = [named_teachers(part) for part in mixed.datasets]
    if all(one is None for one in found):
        return None
    names = [one or [None] * len(part) for one, part in zip(found, mixed.datasets, strict=True)]
    return [names[source][index] for source, index in map(mixed.origin, range(len(mixed)))]


def _joined(parts: Sequence[Any]) -> list[str | None] | None:
    found = [named_teachers(part) for part in parts]
    if all(one is None for one in found):
        return None
    return [
        name
        for part, names in zip(parts, found, strict=True)
        for name in (names or [None] * len(part))
    ]


def with_routes(to_batch: Callable[..., Batch], samples: Sequence[Any]) -> Batch:
    """A batch of samples that may be `Routed`."""
    batch = to_batch(samples)
    if ROUTE not in samples[0]:
        return batch
    own = [sample[ROUTE] for sample in samples if not sample.get("blank")]
    return replace(batch, routes=torch.tensor(own, dtype=torch.long))


class Routed(Dataset):
    """Samples with the number of their only teacher; -1 for those that all teachers teach.

    Args:
        dataset: The samples.
        names: Each sample's teacher; None for all.
        teachers: Names of the teachers, in the order of their numbers.

    Raises:
        ValueError: If a name is none of a teacher.
    """

    def __init__(self, dataset: Any, names: Sequence[str | None], teachers: Sequence[str]) -> None:
        numbers = {name: number for number, name in enumerate(teachers)}
        for index, name in enumerate(names):
            if name is not None and name not in numbers:
                raise ValueError(
                    f"sample {index}: its column {COLUMN} says {name!r}; the teachers are "
                    f"{', '.join(teachers)}"
                )
        self._dataset = dataset
        self._routes = [-1 if name is None else numbers[name] for name in names]

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._dataset[index] | {ROUTE: self._routes[index]}
