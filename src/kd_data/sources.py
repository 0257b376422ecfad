"""From the config's dataset nodes to micro-batches."""

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from kd_data import collate
from kd_data.ranks import Ranks
from kd_data.samples import Share, build_samples
from kd_data.sampling import LengthGroupedSampler, check_grouping, sample_lengths
from kd_data.transfer import to_device
from kd_data.workers import batches, worker_options


@dataclass
class Data:
    """A run's batches.

    Attributes:
        loader: Micro-batches to train on.
        val_loader: Micro-batches to validate on; None without validation.
        num_samples: Samples of the training dataset.
        steps_per_epoch: Optimizer steps of one epoch.
        samples_per_step: Samples that a rank trains on in a step.
        global_batch: Samples that all ranks train on in a step.
        order: The seed of the shuffled order; None without shuffling.
        lengths: Checksum of the lengths that the order groups by; None without grouping.
    """

    loader: DataLoader
    val_loader: DataLoader | None
    num_samples: int
    steps_per_epoch: int
    samples_per_step: int
    global_batch: int
    order: int | None
    lengths: int | None

    def facts(self) -> dict[str, int | None]:
        """What must be the same when a run goes on, or its place in the epoch means nothing."""
        return {
            "samples": self.num_samples,
            "samples per step": self.global_batch,
            "seed of the shuffled order": self.order,
            "lengths to group by": self.lengths,
        }

    def check_same(self, facts: dict[str, int | None]) -> None:
        """Raise `ValueError` unless ``facts`` are those of this data."""
        for name, value in self.facts().items():
            if value != facts.get(name):
                raise ValueError(
                    f"resume_from_checkpoint: dataset: {name}: was {facts.get(name)}, now {value}; "
                    "keep dataset, seed, shuffle, group_by_length (with it the tokenizer too), and "
                    "batch_size x gradient_accumulation_steps x devices"
                )


def build_data(
    cfg: DictConfig,
    ranks: Ranks,
    seed: int,
    ignore_index: int,
    tokenizer: Any,
    teacher_tokenizer: Any,
) -> Data:
    """The datasets and loaders of ``cfg``.

    Raises:
        ValueError: If a dataset is empty, carries no label, or does not fill one step.
    """
    check_grouping(cfg)
    to_batch = partial(
        collate,
        pad_id=tokenizer.pad_id,
        ignore_index=ignore_index,
        teacher_pad_id=0 if teacher_tokenizer is None else teacher_tokenizer.pad_id,
    )
    tokenizers = tokenizer, teacher_tokenizer
    dataset = build_samples(cfg, "dataset", *tokenizers, ignore_index)
    per_step = cfg.batch_size * cfg.gradient_accumulation_steps
    steps = _steps_per_epoch(cfg, len(dataset), ranks.world_size)
    lengths = sample_lengths(dataset, ranks) if cfg.group_by_length else None
    loader = build_loader(
        dataset,
        ranks,
        to_batch,
        batch_size=cfg.batch_size,
        shuffle=cfg.shuffle,
        seed=seed,
        lengths=lengths,
        group_size=per_step * ranks.world_size,
        num_workers=cfg.num_workers,
        num_ahead=cfg.gradient_accumulation_steps,
    )
    val_loader = None
    if cfg.dataset_val is not None:
        val = build_samples(cfg, "dataset_val", *tokenizers, ignore_index)
        val_loader = build_val_loader(
            val,
            ranks,
            to_batch,
            batch_size=cfg.batch_size_val or cfg.batch_size,
            num_workers=cfg.num_workers,
        )
    return Data(
        loader,
        val_loader,
        len(dataset),
        steps,
        per_step,
        per_step * ranks.world_size,
        seed if cfg.shuffle else None,
        None if lengths is None else zlib.crc32(lengths.numpy().tobytes()),
    )


def _steps_per_epoch(cfg: DictConfig, num_samples: int, num_ranks: int) -> int:
    sizes = (cfg.batch_size, cfg.gradient_accumulation_steps, num_ranks)
    steps = num_samples // math.prod(sizes)
    if steps == 0:
        raise ValueError(
            f"dataset: {num_samples} samples do not fill one step of batch_size x "
            f"gradient_accumulation_steps x devices = {' x '.join(map(str, sizes))}"
        )
    return min(steps, cfg.max_steps_per_epoch or steps)


def build_loader(
    dataset: Dataset,
    ranks: Ranks,
    collate_fn: Callable[..., dict[str, Tensor]],
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    lengths: Tensor | None = None,
    group_size: int = 1,
    num_workers: int = 0,
    num_ahead: int = 1,
) -> DataLoader:
    """A loader of collated micro-batches of this rank's share, for training.

    Ranks see different samples, and each sample at most once in an epoch: what does not fill a
    batch on every rank is left out. With the samples' ``lengths`` [N], each ``group_size`` samples
    in a row, over all ranks, have similar ones. ``num_workers`` processes read ``num_ahead``
    micro-batches ahead; the order is the sampler's, here, and none of their business.
    """
    share = {"num_replicas": ranks.world_size, "rank": ranks.rank, "seed": seed}
    sampler = (
        StatefulDistributedSampler(dataset, shuffle=shuffle, drop_last=True, **share)
        if lengths is None
        else LengthGroupedSampler(dataset, lengths, group_size, **share)
    )
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=collate_fn,
        drop_last=True,
        # Of its own, so that opening an epoch in the middle draws nothing from the global one.
        generator=torch.Generator().manual_seed(seed),
        **worker_options(num_workers, num_ahead),
    )


def build_val_loader(
    dataset: Dataset,
    ranks: Ranks,
    collate_fn: Callable[..., dict[str, Tensor]],
    batch_size: int,
    num_workers: int = 0,
) -> DataLoader:
    """A loader of this rank's share of a held-out dataset, every sample once, none left out."""
    return DataLoader(
        Share(dataset, ranks.rank, ranks.world_size),
        batch_size=batch_size,
        collate_fn=collate_fn,
        generator=torch.Generator(),
        **worker_options(num_workers, num_ahead=1),
    )


def skip_to(loader: DataLoader, epoch: int, num_samples: int) -> None:
    """Make the next pass over ``loader`` that of ``epoch``, after ``num_samples`` of this rank."""
    sampler: Any = loader.sampler
    sampler.set_epoch(epoch)
    sampler.load_state_dict({StatefulDistributedSampler._YIELDED: num_samples})


def first_batch(loader: DataLoader, device: torch.device) -> dict[str, Tensor]:
    """The dataset's first samples as a micro-batch, without moving the loader on."""
    dataset: Any = loader.dataset
    size = min(loader.batch_size or 1, len(dataset))
    return to_device(loader.collate_fn([dataset[i] for i in range(size)]), device)


def grouped(loader: DataLoader, size: int) -> Iterator[list[dict[str, Tensor]]]:
    """The micro-batches of one optimizer step at a time; an incomplete last group is left out.

    They are on the host: all of a step together may be more than a GPU has room for.
    """
    remaining = batches(loader)
    while len(group := list(islice(remaining, size))) == size:
        yield group
