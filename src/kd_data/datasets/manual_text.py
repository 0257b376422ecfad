"""From topics of a manual to clean passages, split by topic, and multiple-choice questions.

Everything is drawn with a fixed seed: the same topics give the same rows.
"""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

_SEED = 2024
# As much as lm_eval gets through in a minute: 135M parameters, two CPU cores, batches of eight.
_HELDOUT_CHARS = 32_000
_NUM_QUESTIONS = 60
_PASSAGE_CHARS = 900
_CONTEXT_CHARS = (60, 200)
_CONTINUATION_CHARS = (40, 120)
_NUM_CHOICES = 4

# Grammar, doctests, tables and headings' underlines.
_NOT_PROSE = re.compile(r"::=|^\s*(>>>|\||\+-|([*=~^-])\2{2,}\s*$)", re.MULTILINE)
_FOOTNOTE = re.compile(r"(?<!\w)\[\d+\]\s*")
_EMPHASIS = re.compile(r"(?<![\w*])\*{1,2}(?=\S)([^*]+?)(?<=\S)\*{1,2}(?![\w*])")
_SENTENCE_END = re.compile(r"[.:;!?][\"”’)]*$")


class Excerpt(NamedTuple):
    """Some sentences of a passage, and those that follow."""

    topic: str
    context: str
    continuation: str


def paragraphs(text: str) -> list[str]:
    """The prose of a topic, one line a paragraph: no headings, code, grammar or tables."""
    found = []
    for block in re.split(r"\n\s*\n", text):
        if _NOT_PROSE.search(block):
            continue
        line = " ".join(block.split())
        line = re.sub(r"(?<=\w)- (?=\w)", "-", line)  # a line broken after a hyphen
        line = _EMPHASIS.sub(r"\1", _FOOTNOTE.sub("", line)).removeprefix("* ").strip()
        letters = sum(c.isalpha() or c == " " for c in line)
        if len(line) >= 60 and letters > 0.78 * len(line) and _SENTENCE_END.search(line):
            found.append(line)
    return found


def split_topics(topics: Mapping[str, str]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Divide topics (name to text) at random into those for training and those held out.

    The manual repeats itself: long topics contain short ones. So each paragraph is kept once, and
    what a held-out topic says is left out of the topics for training.

    Returns:
        Paragraphs by topic, for training and held out.
    """
    names = sorted(topics)
    random.Random(_SEED).shuffle(names)
    train: dict[str, list[str]] = {}
    heldout: dict[str, list[str]] = {}
    seen: set[str] = set()
    remaining = _HELDOUT_CHARS
    for name in names:
        new = [p for p in dict.fromkeys(paragraphs(topics[name])) if p not in seen]
        size = sum(map(len, new))
        if 0 < size <= remaining:
            heldout[name] = new
            seen.update(new)
            remaining -= size
    for name in names:
        if name not in heldout:
            train[name] = [p for p in dict.fromkeys(paragraphs(topics[name])) if p not in seen]
            seen.update(train[name])
    return train, heldout


def passages(texts: Iterable[str]) -> list[str]:
    """Consecutive paragraphs joined to passages; a short rest joins the last one."""
    found: list[str] = []
    for text in texts:
        if found and len(found[-1]) < _PASSAGE_CHARS:
            found[-1] += "\n\n" + text
        else:
            found.append(text)
    if len(found) > 1 and len(found[-1]) < _PASSAGE_CHARS / 3:
        rest = found.pop()
        found[-1] += "\n\n" + rest
    return found


def excerpts(topic: str, passage: str) -> list[Excerpt]:
    """Every stretch of a passage that makes a short question: whole sentences, none used twice."""
    found, context, continuation = [], "", ""
    for sentence in re.split(r"(?<=[.!?])\s+", passage):
        if len(context) < _CONTEXT_CHARS[0]:
            context = f"{context} {sentence}".strip()
            continue
        continuation = f"{continuation} {sentence}".strip()
        if len(continuation) >= _CONTINUATION_CHARS[0]:
            if len(context) <= _CONTEXT_CHARS[1] and len(continuation) <= _CONTINUATION_CHARS[1]:
                found.append(Excerpt(topic, context, continuation))
            context = continuation = ""
    return found


def questions(heldout: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Multiple-choice questions: which of four texts follows?

    Args:
        heldout: Rows of ``topic`` and ``text``.

    Returns:
        Rows of ``topic``, ``context``, ``choices`` and ``label``, the index of the true one. The
        others are continuations of similar length from other topics.
    """
    rng = random.Random(_SEED)
    pool = [excerpt for row in heldout for excerpt in excerpts(row["topic"], row["text"])]
    pool = list({excerpt.continuation: excerpt for excerpt in pool}.values())
    found = []
    for true in rng.sample(pool, min(_NUM_QUESTIONS, len(pool))):
        others = [other.continuation for other in pool if other.topic != true.topic]
        others.sort(key=lambda text: abs(len(text) - len(true.continuation)))
        choices = rng.sample(others[: 4 * _NUM_CHOICES], _NUM_CHOICES - 1)
        label = rng.randrange(_NUM_CHOICES)
        choices.insert(label, true.continuation)
        found.append(
            {"topic": true.topic, "context": true.context, "choices": choices, "label": label}
        )
    return found
