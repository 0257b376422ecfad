"""From the config's dataset nodes to micro-batches."""

import warnings
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler
from torchtune.datasets import ConcatDataset

from kd_data import collate
from kd_training.config import component
from kd_training.placement import Placement

# torchdata's loader announces itself to a counter that torch no longer keeps.
warnings.filterwarnings("ignore", message="'set_vital' is deprecated")

_LOOK_FOR_LABELS_IN = 1000


def build_dataset(
    node: DictConfig | ListConfig, tokenizer: Any, key: str, ignore_index: int
) -> Any:
    """The dataset that ``node`` names; a list of nodes is concatenated.

    Raises:
        ValueError: If it is empty or its first samples carry no label at all.
    """
    if isinstance(node, ListConfig):
        dataset = ConcatDataset([component(one, key, tokenizer) for one in node])
    else:
        dataset = component(node, key, tokenizer)
    if len(dataset) == 0:
        raise ValueError(f"{key} is empty; check its files, split and filters")
    looked_at = min(len(dataset), _LOOK_FOR_LABELS_IN)
    if not any(_has_target(dataset[i], ignore_index) for i in range(looked_at)):
        raise ValueError(
            f"{key}: all labels of its first {looked_at} samples are masked: nothing to learn; "
            "check its columns, train_on_prompt/train_on_input and tokenizer.max_seq_len"
        )
    return dataset


def _has_target(sample: dict[str, Any], ignore_index: int) -> bool:
    # The first token is nobody's target.
    return any(int(label) != ignore_index for label in sample["labels"][1:])


def build_loader(
    dataset: Dataset,
    placement: Placement,
    pad_id: int,
    ignore_index: int,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    drop_last: bool,
) -> StatefulDataLoader:
    """A loader of collated micro-batches of this rank's share of ``dataset``."""
    sampler = StatefulDistributedSampler(
        dataset,
        num_replicas=placement.world_size,
        rank=placement.rank,
        shuffle=shuffle,
        seed=seed,
        drop_last=drop_last,
    )
    return StatefulDataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=partial(collate, pad_id=pad_id, ignore_index=ignore_index),
        drop_last=drop_last,
    )


def grouped(
    loader: StatefulDataLoader, size: int, device: torch.device
) -> Iterator[list[dict[str, Tensor]]]:
    """The micro-batches of one optimizer step at a time; an incomplete last group is left out."""
    batches = iter(loader)
    while len(group := list(islice(batches, size))) == size:
        yield [{k: v.to(device) for k, v in batch.items()} for batch in group]
