"""Which targets of two tokenizers end at the same character of one text.

Samples carry token ids and labels, no text. So each side's text is decoded again, token by token,
and the stretches of it that are trained on (an answer, a turn of a conversation, a whole text) are
laid over one another: they are equal, or a side has lost some of its beginning or its end. What
lies between them need not be equal, as chat templates differ.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

_INCOMPLETE = "\ufffd"  # what a part of a character is decoded to
# A special token in a text, whatever it is called. Unicode keeps this code out of all texts.
_SPECIAL = "\uffff"
_MANY = 32  # so many characters in a row do not agree by chance


class LabelledRun(NamedTuple):
    """Consecutive labelled tokens.

    Attributes:
        text: What they say.
        ends: Number of the text's characters up to the end of a target → the position that
            predicts it. A target that ends inside of a character is not listed.
    """

    text: str
    ends: dict[int, int]


def labelled_runs(
    tokens: Sequence[int], labels: Sequence[int], tokenizer: Any, ignore_index: int
) -> list[LabelledRun]:
    """The runs of a sample with unshifted labels."""
    found = pieces(tokens, tokenizer)
    labelled = [int(label) != ignore_index for label in labels]
    groups = groupby(range(len(found)), key=labelled.__getitem__)
    return [_run(list(positions), found) for is_run, positions in groups if is_run]


def _run(positions: list[int], found: list[str]) -> LabelledRun:
    text = "".join(found[i] for i in positions)
    # The rest of a character whose beginning is cut off is no text.
    end = -len(text) + len(text.lstrip(_INCOMPLETE))
    whole, ends = text[-end:], {}
    for i in positions:
        end += len(found[i])
        if found[i] and end > 0 and i > 0:  # the first token is nobody's target
            ends[end] = i - 1
    return LabelledRun(whole, ends)


def pieces(tokens: Sequence[int], tokenizer: Any) -> list[str]:
    """The characters that each token completes: none, one or several; joined, they are the text.

    Decoded in a window that begins where a token begins that ends with a character, because some
    decoders treat a text's beginning in their own way (they drop a space).
    """
    special = _special_ids(tokenizer)
    ids = [int(token) for token in tokens]
    found = []
    start = complete = 0
    for i, token in enumerate(ids):
        if token in special:
            found.append(_SPECIAL)
            start = complete = i + 1
            continue
        known = tokenizer.decode(ids[start:complete]) if complete > start else ""
        text = tokenizer.decode(ids[start : i + 1])
        if len(text) > len(known) and not text.endswith(_INCOMPLETE):
            found.append(text[len(known) :])
            start, complete = complete, i + 1
        else:
            found.append("")
    return found


def _special_ids(tokenizer: Any) -> set[int]:
    """Of tokens that stand for no text. torchtune's tokenizers have them in various places."""
    markers = getattr(tokenizer, "marker_ids", None)
    if markers is None:
        markers = getattr(tokenizer, "special_tokens", {}).values()
    ends = (getattr(tokenizer, name, None) for name in ("bos_id", "eos_id"))
    return {*markers, *(token for token in ends if token is not None)}


def pair_targets(student: Sequence[LabelledRun], teacher: Sequence[LabelledRun]) -> dict[int, int]:
    """Position of the student → position of the teacher whose target ends at the same character.

    The n-th run meets the n-th. Where one side has fewer, cut off with an end or a beginning, it is
    the n-th from the other end that gives more pairs.
    """
    orders = [(student, teacher)]
    if len(student) != len(teacher):
        orders.append((student[::-1], teacher[::-1]))
    found = [
        {k: v for runs in zip(*order, strict=False) for k, v in _pair_runs(*runs).items()}
        for order in orders
    ]
    return max(found, key=len)


def _pair_runs(student: LabelledRun, teacher: LabelledRun) -> dict[int, int]:
    a, b = student.text, teacher.text
    shift = _shift(a, b)
    if shift is None:
        return {}
    return {
        position: teacher.ends[end - shift]
        for end, position in student.ends.items()
        # Not what another special token, of which one side has more, is laid over.
        if end - shift in teacher.ends and a[end - 1] == b[end - shift - 1]
    }


def _shift(a: str, b: str) -> int | None:
    """How many characters later in ``a`` is what ``b`` says; None where the two do not agree.

    They begin together, end together, or one begins somewhere in the other and outlasts it. Of
    several the one with most characters in common.
    """
    text_a, text_b = a.rstrip(_SPECIAL), b.rstrip(_SPECIAL)
    shifts = [0, len(text_a) - len(text_b)]
    if min(len(text_a), len(text_b)) >= _MANY:
        shifts += [s for s in (text_a.find(text_b[:_MANY]),) if s > 0]
        shifts += [-s for s in (text_b.find(text_a[:_MANY]),) if s > 0]
    best = max(shifts, key=lambda shift: _agreeing(a, b, shift))
    return best if _agreeing(a, b, best) else None


def _agreeing(a: str, b: str, shift: int) -> int:
    """Number of characters that ``a`` and ``b`` share; 0 where one differs.

    A special token at the end may lie over a text that is cut off at the other side: torchtune
    puts one behind what it has cut.
    """
    a, b = a[max(shift, 0) :], b[max(-shift, 0) :]
    length = min(len(a.rstrip(_SPECIAL)), len(b.rstrip(_SPECIAL)))
    if a[:length] != b[:length]:
        return 0
    return length + (a[length : length + 1] == b[length : length + 1] == _SPECIAL)
