"""How the student's texts are: lengths, ends, repetition, and some of them to read."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from kd_data.sources import News
from kd_training.on_policy.writer import Written
from kd_training.placement.one_device import Placement

_GRAM = 4  # tokens of what is taken for a repetition
_LOOK_BACK = 20  # steps
# What is no longer chance between the first steps that were looked at and the last ones.
_LONGER, _REPETITION, _UNFINISHED = 2.0, 0.3, 0.5


def repetition(tokens: Sequence[int]) -> tuple[int, int]:
    """How many runs of four tokens were there before in the text, and how many there are."""
    grams = [tuple(tokens[i : i + _GRAM]) for i in range(len(tokens) - _GRAM + 1)]
    return len(grams) - len(set(grams)), len(grams)


class Watch:
    """Looks at each step's texts, of all ranks.

    Args:
        placement: The ranks.
        tokenizer: Turns tokens into text.
        texts_every: Texts are shown of each n-th step.
        num_texts: How many.
    """

    def __init__(
        self, placement: Placement, tokenizer: Any, texts_every: int, num_texts: int
    ) -> None:
        self._placement, self._tokenizer = placement, tokenizer
        self._texts_every, self._num_texts = texts_every, num_texts
        self._news = News()
        self._first: list[dict[str, float]] = []
        self._last: deque[dict[str, float]] = deque(maxlen=_LOOK_BACK)
        self._warned: set[str] = set()

    def news(self) -> News:
        """Of the newest step."""
        return self._news

    def nothing_written(self) -> None:
        """The newest step has none of its own texts."""
        self._news = News()

    def look(self, step: int, texts: list[Written], seconds: float) -> None:
        """Take in a step's texts, which took so long to write."""
        values = self._values(texts, seconds)
        due = step == 1 or step % self._texts_every == 0
        shown = texts[: self._num_texts] if due else []
        rows = [self._row(one) for one in shown]
        self._news = News(values, rows, self._warnings(values))

    def _values(self, texts: list[Written], seconds: float) -> dict[str, float]:
        counted = [repetition(one.tokens.tolist()) for one in texts]
        own = [
            float(len(texts)),
            float(sum(len(one.tokens) for one in texts)),
            float(sum(one.finished for one in texts)),
            float(sum(again for again, _ in counted)),
            float(sum(grams for _, grams in counted)),
        ]
        summed = self._placement.sum(torch.tensor(own, dtype=torch.float64)).tolist()
        number, tokens, finished, again, grams = summed
        slowest = max(self._placement.gather(seconds))
        return {
            "generated_length": tokens / max(number, 1),
            "finished": finished / max(number, 1),
            "repetition": again / max(grams, 1),
            "generated_per_second": tokens / max(slowest, 1e-9),
            "generation_seconds": slowest,
        }

    def _row(self, one: Written) -> dict[str, str]:
        decode = self._tokenizer.decode
        return {
            "prompt": decode(one.prompt.tokens.tolist()),
            "completion": decode(one.tokens.tolist()),
            "data": decode(one.prompt.given.tolist()),
        }

    def _warnings(self, values: dict[str, float]) -> list[str]:
        """What the last steps' texts have become, compared with the first ones; each once."""
        if len(self._first) < _LOOK_BACK:
            self._first.append(values)
            return []
        self._last.append(values)
        if len(self._last) < _LOOK_BACK:
            return []
        before, now = (
            {name: sum(one[name] for one in steps) / _LOOK_BACK for name in values}
            for steps in (self._first, self._last)
        )
        found = {
            "length": (
                now["generated_length"] > _LONGER * before["generated_length"],
                f"the student's texts grow: {before['generated_length']:.0f} tokens at first, now "
                f"{now['generated_length']:.0f}; look at logs/samples.jsonl, lower "
                "on_policy.max_new_tokens, or mix in given text (on_policy.fraction)",
            ),
            "end": (
                now["finished"] < before["finished"] - _UNFINISHED,
                f"the student ends fewer of its texts: {before['finished']:.0%} at first, now "
                f"{now['finished']:.0%}; look at logs/samples.jsonl and at the end tokens",
            ),
            "repetition": (
                now["repetition"] > before["repetition"] + _REPETITION,
                f"the student repeats itself: {before['repetition']:.0%} of its text at first, now "
                f"{now['repetition']:.0%}; look at logs/samples.jsonl, lower the learning rate, or "
                "mix in given text (on_policy.fraction)",
            ),
        }
        new = [name for name, (holds, _) in found.items() if holds and name not in self._warned]
        self._warned.update(new)
        return [found[name][1] for name in new]
