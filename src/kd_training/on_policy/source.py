"""Steps whose completions the student writes just before it is taught on them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from kd_data import Batch
from kd_data.sources import DatasetSource, Facts, News
from kd_data.tasks.prompts import prompts_of
from kd_training.on_policy.watch import Watch
from kd_training.on_policy.writer import Writer, Written


class Completed:
    """Micro-batches with the student's completions in place of the data's.

    Args:
        writer: Has them written.
        to_batch: Makes a batch of samples.
        answered: Fetches what is known early of a teacher's answers about a batch.
        prompt_tokens: Length of the prompts; None: what comes before the first label.
        num_completions: Of each prompt.
        ignore_index: The label of a prompt.
    """

    def __init__(
        self,
        writer: Writer,
        to_batch: Callable[[Sequence[Any]], Batch],
        answered: Callable[[Batch], Batch],
        prompt_tokens: int | None,
        num_completions: int,
        ignore_index: int,
    ) -> None:
        self.writer, self.num_completions = writer, num_completions
        self.to_batch, self.answered = to_batch, answered
        self._prompt_tokens, self._ignore_index = prompt_tokens, ignore_index

    def __call__(self, batches: list[Batch], epoch: int) -> tuple[list[Batch], list[Written]]:
        """The batches, as often as there are completions of a prompt, and all that was written."""
        prompts = [prompts_of(batch, self._prompt_tokens) for batch in batches]
        completed: list[Batch] = []
        texts: list[Written] = []
        for number in range(self.num_completions):
            written = self.writer([one for own in prompts for one in own], epoch, number)
            texts += written
            remaining = iter(written)
            completed += [
                self._batch([next(remaining) for _ in own], batch)
                for own, batch in zip(prompts, batches, strict=True)
            ]
        return completed, texts

    def _batch(self, written: list[Written], given: Batch) -> Batch:
        """Of a micro-batch that holds no document it is the micro-batch itself."""
        ignore, apart = self._ignore_index, self.writer.apart
        samples = [one.prompt.sample(one.tokens, ignore, apart) for one in written]
        made = self.to_batch(samples) if samples else given
        return self.answered(replace(made, written=True))


class OnPolicySource:
    """A dataset of prompts; see `kd_data.sources.Source`.

    Whether the student writes a step's completions is drawn from seed and step: it is the same on
    every rank, and in a run that goes on.

    Args:
        given: The dataset's own steps.
        completed: Puts the student's completions into them.
        fraction: The share of steps that it writes.
        watch: Looks at what is written.
        seed: Of the draws.
    """

    def __init__(
        self, given: DatasetSource, completed: Completed, fraction: float, watch: Watch, seed: int
    ) -> None:
        self.given, self.dataset = given, given.dataset
        self.steps_per_epoch, self.ignore_index = given.steps_per_epoch, given.ignore_index
        self._completed, self._fraction = completed, fraction
        self._watch, self._seed = watch, seed

    def steps(self, epoch: int, first: int = 0) -> Iterator[list[Batch]]:
        """See `Source`; a step's completions are written when it is asked for, not before."""
        number = epoch * self.steps_per_epoch + first
        for batches in self.given.steps(epoch, first):
            number += 1
            if self.writes(number):
                completed, texts = self._completed(batches, epoch)
                self._watch.look(number, texts, self._completed.writer.seconds)
                yield completed
            else:
                self._watch.nothing_written()
                yield [self._completed.answered(batch) for batch in batches]

    def writes(self, step: int) -> bool:
        """Whether the student writes the completions of a step, counted from 1 over all epochs."""
        drawn = blake2b(f"{self._seed} {step}".encode(), digest_size=6).digest()
        return int.from_bytes(drawn, "big") / 2**48 < self._fraction

    def first_batch(self) -> Batch:
        """The dataset's first samples as they are: nobody asks the teacher about them."""
        return self.given.first_batch()

    def news(self) -> News:
        """How the newest texts are."""
        return self._watch.news()

    def facts(self) -> Facts:
        """The dataset's."""
        return self.given.facts()

    def check_same(self, facts: Facts) -> None:
        """Raise `ValueError` unless ``facts`` are those of the dataset."""
        self.given.check_same(facts)

    def describe(self, epochs: int) -> list[str]:
        """The dataset's lines, and who writes."""
        sampling = self._completed.writer.sampling
        share = f"{self._fraction:.0%} of the steps"
        return [
            *self.given.describe(epochs),
            f"the student writes the completions of {share}, up to {sampling.max_new_tokens} "
            f"tokens at temperature {sampling.temperature:g}",
        ]
