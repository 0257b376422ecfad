"""What a server says of a text: the most probable ids behind each of its tokens.

Shapes: L tokens of a text, K ids.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_PREFIX = "token_id:"  # of vLLM's answers with return_tokens_as_token_ids


class Answer(NamedTuple):
    """Of one text.

    Attributes:
        ids: [L, K] int64, the most probable first.
        log_probs: [L, K].
        rest: [L, 1], the logarithm of what all other ids have together.
    """

    ids: Tensor
    log_probs: Tensor
    rest: Tensor


def read_choice(
    choice: Mapping[str, Any], text: Sequence[int], top_k: int, vocabulary: int
) -> Answer:
    """A choice of a completion's answer, of which each position predicts the next token.

    Two forms are read: vLLM's ``prompt_logprobs`` (a list, first null, then id → logprob), and
    OpenAI's ``echo`` with ``logprobs.top_logprobs`` whose keys are ``token_id:<id>``. What comes
    after the last token is in the one generated token's ``logprobs.top_logprobs``.

    Args:
        choice: As the server has sent it.
        text: The tokens that it was sent.
        top_k: How many ids were asked for.
        vocabulary: How many there are.

    Raises:
        ValueError: If something is missing, or the answer is about other tokens.
    """
    wanted = min(top_k, vocabulary)
    rows = [_by_id(row) for row in _rows(choice, len(text))]
    for position, row in enumerate(rows[:-1]):
        if text[position + 1] not in row:
            raise ValueError(
                f"teacher_server: the answer is about other tokens: token {position + 1} of a text "
                f"is {text[position + 1]}, of which it says nothing; is it a server of prompt "
                "log-probabilities, with the student's tokenizer?"
            )
    if any(not 0 <= one < vocabulary for row in rows for one in row):
        raise ValueError(
            f"teacher_server: an id of the answer is none of the student's {vocabulary}; the "
            "teacher must have the same vocabulary"
        )
    least = min(map(len, rows))
    if least < wanted:
        raise ValueError(
            f"teacher_server: {least} log-probabilities of a token instead of {wanted}; start vLLM "
            f"with --max-logprobs {wanted}, or lower teacher_server.top_k"
        )
    best = [sorted(row.items(), key=lambda one: (-one[1], one[0]))[:wanted] for row in rows]
    ids = torch.tensor([[one for one, _ in row] for row in best])
    log_probs = torch.tensor([[value for _, value in row] for row in best], dtype=torch.float64)
    return Answer(ids, log_probs.float(), _rest(log_probs).float())


def _rest(log_probs: Tensor) -> Tensor:
    """log(1 − Σ p) by log1mexp; −inf where rounding leaves nothing."""
    known = log_probs.logsumexp(-1, keepdim=True)
    return torch.where(known < 0, torch.log(-torch.expm1(known.clamp(max=-1e-300))), -torch.inf)


def _rows(choice: Mapping[str, Any], length: int) -> list[Mapping[str, Any]]:
    """What is said after each of the text's tokens."""
    shown = ((choice.get("logprobs") or {}).get("top_logprobs")) or []
    of_prompt = choice.get("prompt_logprobs")
    if of_prompt is None:  # the text is echoed before what was generated
        of_prompt = shown[:-1]
    if len(of_prompt) != length or not shown:
        raise ValueError(
            f"teacher_server: log-probabilities of {len(of_prompt)} tokens of a text of {length}, "
            f"and {'some' if shown else 'none'} behind it; the server must know prompt_logprobs "
            "or echo, as vLLM does"
        )
    return [*of_prompt[1:], shown[-1]]


def _by_id(row: Mapping[str, Any]) -> dict[int, float]:
    found = {}
    for key, value in row.items():
        number = key.removeprefix(_PREFIX)
        if not number.isdecimal():
            raise ValueError(
                f"teacher_server: the answer names a token {key!r} by its text, which may be that "
                "of several; the server must know return_tokens_as_token_ids, as vLLM does"
            )
        found[int(number)] = value["logprob"] if isinstance(value, Mapping) else value
    return found
