"""Completions of prompts, the same on any number of ranks and in any micro-batches."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

import torch
from torch import Tensor

from hf_models.model import Model, Sampling
from kd_data.tasks.prompts import Prompt
from kd_training.placement.one_device import Placement

_SEED_BYTES = 8


class Generator(Protocol):
    """Who turns prompts into completions: the student itself, or an engine that has its weights."""

    def __call__(
        self, prompts: list[Tensor], sampling: Sampling, stop_ids: Collection[int], seeds: list[int]
    ) -> list[Tensor]:
        """A completion of each prompt, up to and with its first stop token.

        On every rank it is called equally often, with a prompt at least.
        """


class OwnGenerator:
    """The student's own ``generate``, wherever its weights are.

    Args:
        student: The student.
        placement: Where it lives.
        gather: Whether the weights of a sharded one are gathered for it.
    """

    def __init__(self, student: Model, placement: Placement, gather: bool) -> None:
        self._student, self._placement, self._gather = student, placement, gather

    def __call__(
        self, prompts: list[Tensor], sampling: Sampling, stop_ids: Collection[int], seeds: list[int]
    ) -> list[Tensor]:
        """See `Generator`."""
        with self._placement.for_generation(self._student, self._gather) as any_rank:
            return self._student.generate(prompts, sampling, stop_ids, seeds, any_rank)


@dataclass(frozen=True)
class Written:
    """A completion.

    Attributes:
        prompt: What it completes.
        tokens: It, with its end token if it has come to one; empty where the prompt leaves no room.
        finished: Whether it has.
    """

    prompt: Prompt
    tokens: Tensor
    finished: bool


@dataclass
class Writer:
    """Has prompts completed, each as often as asked for.

    A completion's random numbers come from the run's seed, its document, the round and its number:
    so it is the same in whatever company it is written. (In other company its logits may differ in
    their last digits; that a choice falls between the two is as rare as these are small.)

    Args:
        generator: Who writes.
        placement: The ranks.
        sampling: How.
        stop_ids: Tokens that end a text.
        room: The longest text, prompt included; None without a limit.
        apart: Whether prompt and completion have positions of their own.
        seed: The run's.
        batch_size: Prompts side by side; None for all.

    Attributes:
        seconds: What this rank's newest call took.
    """

    generator: Generator
    placement: Placement
    sampling: Sampling
    stop_ids: frozenset[int]
    room: int | None
    apart: bool
    seed: int
    batch_size: int | None = None
    seconds: float = 0.0

    def __call__(self, prompts: Sequence[Prompt], epoch: int, number: int = 0) -> list[Written]:
        """A completion of each prompt.

        Args:
            prompts: This rank's; every rank calls, be it without any.
            epoch: The round: another one has other completions.
            number: Of several completions of a prompt.
        """
        start = time.perf_counter()
        tokens: list[Tensor] = [torch.empty(0, dtype=torch.long) for _ in prompts]
        longest = [self._longest(prompt) for prompt in prompts]
        for limit, rounds in self._rounds(longest):
            own = [i for i, one in enumerate(longest) if one == limit]
            for chosen in _split(own, rounds):
                given = [prompts[i] for i in chosen]
                completions = self._complete(given, limit, epoch, number)
                for i, completion in zip(chosen, completions, strict=True):
                    tokens[i] = completion
        self.seconds = time.perf_counter() - start
        stop = torch.tensor(sorted(self.stop_ids), dtype=torch.long)
        ended = [bool(torch.isin(one[-1:], stop).any()) for one in tokens]
        return [Written(*one) for one in zip(prompts, tokens, ended, strict=True)]

    def _longest(self, prompt: Prompt) -> int:
        """How long its completion may be; 0 of a prompt that fills all room."""
        if len(prompt.tokens) == 0:
            return 0
        if self.room is None:
            return self.sampling.max_new_tokens
        taken = 0 if self.apart else len(prompt.tokens)
        return max(0, min(self.sampling.max_new_tokens, self.room - taken))

    def _rounds(self, longest: list[int]) -> list[tuple[int, int]]:
        """Each length's limit, and how many calls of the generator the ranks do for it."""
        needed = {one: -(-longest.count(one) // (self.batch_size or len(longest)))
                  for one in set(longest) - {0}}  # fmt: skip
        of_ranks = self.placement.gather(needed)
        limits = sorted({limit for one in of_ranks for limit in one}, reverse=True)
        return [(limit, max(one.get(limit, 0) for one in of_ranks)) for limit in limits]

    def _complete(self, prompts: list[Prompt], limit: int, epoch: int, number: int) -> list[Tensor]:
        """One call of the generator; a rank without prompts writes something, and forgets it."""
        tokens = [prompt.tokens for prompt in prompts] or [torch.zeros(1, dtype=torch.long)]
        seeds = [self._seed(prompt, epoch, number) for prompt in prompts] or [0]
        sampling = self.sampling._replace(max_new_tokens=limit if prompts else 1)
        return self.generator(tokens, sampling, self.stop_ids, seeds)[: len(prompts)]

    def _seed(self, prompt: Prompt, epoch: int, number: int) -> int:
        named = " ".join(map(str, (self.seed, epoch, number, *prompt.key))).encode()
        # torch takes them below 2^63.
        return int.from_bytes(blake2b(named, digest_size=_SEED_BYTES).digest(), "big") >> 1


def _split(items: list[int], parts: int) -> list[list[int]]:
    """So many parts of nearly one size; some are empty where there are few items."""
    size = -(-len(items) // parts)
    return [items[i * size : (i + 1) * size] for i in range(parts)]
