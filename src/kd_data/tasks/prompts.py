"""What a model is asked to complete, and samples of what it has written.

Shapes: L tokens of a prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kd_data.batch import LOGITS, Batch
from kd_data.routing import ROUTE


@dataclass(frozen=True)
class Prompt:
    """The beginning of a document.

    Attributes:
        tokens: [L]; of an encoder-decoder what the encoder reads.
        key: The document's hash.
        route: The number of its only teacher; None where the data names none.
        given: What the data has as its completion.
    """

    tokens: Tensor
    key: tuple[int, int]
    route: int | None
    given: Tensor

    def sample(self, completion: Tensor, ignore_index: int, apart: bool) -> dict[str, Any]:
        """The sample of this prompt with another completion.

        Args:
            completion: Its tokens.
            ignore_index: The label of the prompt.
            apart: Whether the two are read by stacks of their own.
        """
        route = {} if self.route is None else {ROUTE: self.route}
        if apart:
            return {"tokens": self.tokens, "labels": completion, **route}
        masked = torch.full_like(self.tokens, ignore_index)
        return {
            "tokens": torch.cat([self.tokens, completion]),
            "labels": torch.cat([masked, completion]),
            **route,
        }


def prompts_of(batch: Batch, num_tokens: int | None = None) -> list[Prompt]:
    """The prompt of each document: what comes before its first label, be it in a packed row or not.

    A document without a label is a prompt as a whole. An encoder-decoder's is its source.

    Args:
        batch: On the host.
        num_tokens: Of a causal model: take the first so many tokens instead, and of a shorter
            document all.
    """
    apart = "decoder_input_ids" in batch.inputs
    routes = [None] * len(batch.sample_keys) if batch.routes is None else batch.routes.tolist()
    keys: Sequence[Any] = batch.sample_keys.tolist()
    found = []
    for number, (key, route) in enumerate(zip(keys, routes, strict=True)):
        prompt, given = (_source if apart else _beginning)(batch, number, num_tokens)
        found.append(Prompt(prompt, tuple(key), route, given))
    return found


def _beginning(batch: Batch, number: int, num_tokens: int | None) -> tuple[Tensor, Tensor]:
    here = batch.documents[LOGITS] == number
    tokens = batch.inputs["tokens"][here]
    length = num_tokens
    if length is None:
        # A label is that of the next token.
        labelled = batch.scopes["labels"][LOGITS][here].nonzero()
        length = int(labelled[0]) + 1 if len(labelled) else len(tokens)
    return tokens[:length], tokens[length:]


def _source(batch: Batch, number: int, _: int | None) -> tuple[Tensor, Tensor]:
    row = int((batch.documents[LOGITS] == number).any(1).nonzero())
    source = batch.inputs["input_ids"][row]
    target = batch.labels[row][batch.scopes["labels"][LOGITS][row]]
    return source[batch.inputs["attention_mask"][row].bool()], target
