"""Whether kept answers are those of the config's teacher, about the config's texts."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tqdm import tqdm

from kd_config.schema import RunConfig
from kd_data import Batch
from kd_teachers import Teacher
from kd_teachers.store.store import Store
from kd_training.identity import identity_of, nodes_of_teacher
from kd_training.placement.one_device import Placement


def check_caches(
    config: RunConfig, teacher: Teacher | None, dtype: torch.dtype, placement: Placement
) -> list[str]:
    """Compare who has answered with whom the config names.

    Returns:
        What a person should know.

    Raises:
        ValueError: If it is another teacher, tokenizer or chat template.
    """
    notes = []
    for key, store in ({} if teacher is None else teacher.stores()).items():
        made_by, contents = store.manifest.identity, store.manifest.contents
        now = identity_of(config, *nodes_of_teacher(config, key), placement)
        difference = made_by.difference(now)
        if difference is not None:
            raise ValueError(
                f"config: {key} {store.directory} was made with {difference}; make another with "
                "tune run kd_cache_teacher and a cache_dir of its own"
            )
        if not now.weights:
            notes.append(
                f"{key} {store.directory} is taken at its word: the files of its teacher, "
                f"{made_by.name}, are not here to compare with"
            )
        if contents.dtype != (own := str(dtype).removeprefix("torch.")):
            notes.append(
                f"{key} {store.directory} was made in {contents.dtype}, this run computes in {own}"
            )
    return notes


def check_documents(
    teacher: Teacher | None,
    datasets: Mapping[str, Any],
    to_batch: Callable[[Any], Batch],
    placement: Placement,
) -> None:
    """Make sure that every text has been answered; each rank looks at its share.

    Args:
        teacher: Who is asked.
        datasets: Samples by the config's key.
        to_batch: Makes a batch of samples.
        placement: The ranks.

    Raises:
        ValueError: On every rank, if one has not; the message names the first.
    """
    stores = [] if teacher is None else list(teacher.stores().values())
    if not stores:
        return
    for key, dataset in datasets.items():
        found = placement.gather(_first_missing(key, dataset, to_batch, stores, placement))
        first = min((one for one in found if one is not None), default=None)
        if first is not None:
            raise ValueError(f"config: {key}: sample {first[0]}: {first[1]}")


def _first_missing(
    key: str,
    dataset: Any,
    to_batch: Callable[[Any], Batch],
    stores: list[Store],
    placement: Placement,
) -> tuple[int, str] | None:
    share = tqdm(
        range(placement.rank, len(dataset), placement.world_size),
        desc=f"looks up {key}",
        delay=2,  # seconds
        leave=False,
        dynamic_ncols=True,
        disable=placement.rank != 0,
    )
    for i in share:
        keys = to_batch([dataset[i]]).sample_keys
        for store in stores:
            missing = store.find(keys) < 0
            if missing.any():
                return i, store.missing(int(missing.argmax()))
    return None
