"""From samples to loaders of micro-batches."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from hf_models.model import ModelFacts
from kd_data.batch import Batch
from kd_data.ranks import Ranks
from kd_data.samples import Share
from kd_data.sampling import EpochSampler, by_length, in_order, sample_lengths, shuffled
from kd_data.sources import DatasetSource
from kd_data.tasks import collate, collate_classification, collate_seq2seq
from kd_data.workers import worker_options

Collate = Callable[[Sequence[Any]], Batch]


@dataclass(frozen=True)
class Batching:
    """How samples become steps.

    Attributes:
        batch_size: Samples of a micro-batch.
        accumulation: Micro-batches of a step on each rank.
        shuffle: Whether their order is drawn.
        seed: What it is drawn with.
        group_by_length: Whether samples of similar length share a step.
        max_steps: At most so many steps of an epoch; None for all.
        num_workers: Processes that read ahead.
        ahead: Whether a thread of this process does.
    """

    batch_size: int
    accumulation: int = 1
    shuffle: bool = True
    seed: int = 0
    group_by_length: bool = False
    max_steps: int | None = None
    num_workers: int = 0
    ahead: bool = False


def collate_with(
    facts: ModelFacts, tokenizer: Any, teacher_tokenizer: Any, ignore_index: int
) -> Collate:
    """Makes a model's batches of samples that these tokenizers have made."""
    if facts.task == "causal_lm":
        return partial(
            collate,
            pad_id=tokenizer.pad_id,
            ignore_index=ignore_index,
            teacher_pad_id=0 if teacher_tokenizer is None else teacher_tokenizer.pad_id,
        )
    shared: dict[str, Any] = {
        "pad_id": tokenizer.pad_id if facts.pad_id is None else facts.pad_id,
        "ignore_index": ignore_index,
        "max_positions": facts.max_positions,
    }
    if facts.task == "seq2seq_lm":
        start: Any = facts.decoder_start_id
        return partial(collate_seq2seq, decoder_start_id=start, **shared)
    classes: Any = facts.classes
    return partial(collate_classification, classes=classes, **shared)


def train_source(
    dataset: Any, batching: Batching, ranks: Ranks, to_batch: Collate, ignore_index: int
) -> DatasetSource:
    """The steps of a dataset on this rank, each sample at most once in an epoch.

    Raises:
        ValueError: If the dataset does not fill one step.
    """
    steps = _steps_per_epoch(batching, len(dataset), ranks.world_size)
    lengths = sample_lengths(dataset, ranks) if batching.group_by_length else None
    order = shuffled(len(dataset)) if batching.shuffle else in_order(len(dataset))
    if lengths is not None:
        group_size = batching.batch_size * batching.accumulation * ranks.world_size
        order = by_length(lengths, group_size)
    loader = DataLoader(
        dataset,
        batch_size=batching.batch_size,
        sampler=EpochSampler(order, batching.seed, ranks),
        collate_fn=to_batch,
        drop_last=True,
        # Of its own, so that opening an epoch in the middle draws nothing from the global one.
        generator=torch.Generator().manual_seed(batching.seed),
        **worker_options(batching.num_workers, batching.accumulation),
    )
    return DatasetSource(
        loader,
        steps,
        batching.accumulation,
        ranks.world_size,
        ignore_index,
        batching.seed if batching.shuffle else None,
        lengths,
        batching.ahead,
    )


def _steps_per_epoch(batching: Batching, num_samples: int, num_ranks: int) -> int:
    sizes = (batching.batch_size, batching.accumulation, num_ranks)
    steps = num_samples // math.prod(sizes)
    if steps == 0:
        raise ValueError(
            f"dataset: {num_samples} samples do not fill one step of batch_size x "
            f"gradient_accumulation_steps x devices = {' x '.join(map(str, sizes))}"
        )
    return min(steps, batching.max_steps or steps)


def val_loader(
    dataset: Dataset, batch_size: int, ranks: Ranks, to_batch: Collate, num_workers: int = 0
) -> DataLoader:
    """This rank's share of a held-out dataset, every sample once, none left out."""
    return DataLoader(
        Share(dataset, ranks.rank, ranks.world_size),
        batch_size=batch_size,
        collate_fn=to_batch,
        generator=torch.Generator(),
        **worker_options(num_workers, num_ahead=1),
    )
