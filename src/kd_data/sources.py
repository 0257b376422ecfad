"""Where a step's micro-batches come from."""

import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import DataLoader

from kd_data.batch import Batch
from kd_data.sampling import EpochSampler
from kd_data.transfer import made_ahead
from kd_data.workers import batches

_LOOK_AT = 100  # samples, for their mean length

Facts = dict[str, int | None]


@dataclass(frozen=True)
class News:
    """What a source has to say of the step that it gave last.

    Attributes:
        values: Numbers for the log, the same on every rank.
        texts: Rows of a table for people, a column for each key.
        warnings: What a person should know.
    """

    values: dict[str, float] = field(default_factory=dict)
    texts: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Source(Protocol):
    """Gives the micro-batches of every optimizer step, the same whenever it is asked.

    Attributes:
        steps_per_epoch: Optimizer steps of one epoch.
        ignore_index: The label of positions without a target.
        dataset: All samples, those of other ranks too.
    """

    steps_per_epoch: int
    ignore_index: int
    dataset: Any

    def steps(self, epoch: int, first: int = 0) -> Iterator[list[Batch]]:
        """This rank's micro-batches of each step of an epoch, from its step ``first`` on.

        They are on the host: all of a step together may be more than a GPU has room for.
        """

    def first_batch(self) -> Batch:
        """A micro-batch to look at, without moving on."""

    def news(self) -> News:
        """What there is to say of the newest step."""

    def facts(self) -> Facts:
        """What must be the same when a run goes on, or its place in the epoch means nothing."""

    def check_same(self, facts: Facts) -> None:
        """Raise `ValueError` unless ``facts`` are those of this source."""

    def describe(self, epochs: int) -> list[str]:
        """Lines for the plan of a run of so many epochs."""


class DatasetSource:
    """Fixed text: a dataset, in an order that seed and epoch fix.

    Args:
        loader: This rank's micro-batches; its sampler is an `EpochSampler`.
        steps_per_epoch: Optimizer steps of one epoch.
        accumulation: Micro-batches of a step.
        num_ranks: The ranks that take part in a step.
        ignore_index: The label of positions without a target.
        order_seed: The seed of the shuffled order; None without shuffling.
        lengths: What the order groups by, [N]; None without grouping.
        ahead: Whether a thread makes the next step's micro-batches beside the current one.
    """

    def __init__(
        self,
        loader: DataLoader,
        steps_per_epoch: int,
        accumulation: int,
        num_ranks: int,
        ignore_index: int,
        order_seed: int | None,
        lengths: Tensor | None,
        ahead: bool = False,
    ) -> None:
        self._ahead = ahead
        self.loader, self.steps_per_epoch = loader, steps_per_epoch
        self.dataset: Any = loader.dataset
        self.ignore_index = ignore_index
        self._accumulation = accumulation
        self._per_step = accumulation * (loader.batch_size or 1)
        self.global_batch = self._per_step * num_ranks
        self._order_seed = order_seed
        self._lengths = None if lengths is None else zlib.crc32(lengths.numpy().tobytes())

    def steps(self, epoch: int, first: int = 0) -> Iterator[list[Batch]]:
        """See `Source`; what is left over after the last step of an epoch is left out."""
        steps = self._steps(epoch, first)
        return made_ahead(steps) if self._ahead else steps

    def _steps(self, epoch: int, first: int) -> Iterator[list[Batch]]:
        sampler: Any = self.loader.sampler
        assert isinstance(sampler, EpochSampler)
        sampler.start(epoch, first * self._per_step)
        with closing(batches(self.loader)) as remaining:
            for _ in range(first, self.steps_per_epoch):
                yield list(islice(remaining, self._accumulation))

    def first_batch(self) -> Batch:
        """The dataset's first samples."""
        size = min(self.loader.batch_size or 1, len(self.dataset))
        return self.loader.collate_fn([self.dataset[i] for i in range(size)])

    def news(self) -> News:
        """Nothing: the text is known."""
        return News()

    def facts(self) -> Facts:
        """Sizes and order."""
        return {
            "samples": len(self.dataset),
            "samples per step": self.global_batch,
            "seed of the shuffled order": self._order_seed,
            "lengths to group by": self._lengths,
        }

    def check_same(self, facts: Facts) -> None:
        """Raise `ValueError` unless ``facts`` are those of this source."""
        for name, value in self.facts().items():
            if value != facts.get(name):
                raise ValueError(
                    f"resume_from_checkpoint: dataset: {name}: was {facts.get(name)}, now {value}; "
                    "keep dataset, seed, shuffle, group_by_length (with it the tokenizer too), and "
                    "batch_size x gradient_accumulation_steps x devices"
                )

    def describe(self, epochs: int) -> list[str]:
        """Targets that are paired, where there are two tokenizers; steps and tokens."""
        dataset, lines = self.dataset, []
        if hasattr(dataset, "paired_share"):
            share = dataset.paired_share or 0.0
            lines.append(f"targets paired with the teacher's: {share:.0%} in the first samples")
        steps = epochs * self.steps_per_epoch
        looked_at = min(len(dataset), _LOOK_AT)
        mean_length = sum(len(dataset[i]["tokens"]) for i in range(looked_at)) / looked_at
        tokens = steps * self.global_batch * mean_length
        return [*lines, f"{steps} steps of {self.global_batch} samples, about {tokens:.2g} tokens"]
