"""Completions by transformers' own generate, with our choice of the next token."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from hf_models.model import ModelFacts, Sampling
from hf_models.sampling import choose, seeded


class _Chosen(LogitsProcessor):
    """Leaves the token that a row's own generator draws, so that the largest logit is drawn."""

    def __init__(self, sampling: Sampling, seeds: list[int], device: torch.device) -> None:
        self._sampling = sampling
        self._generators = seeded(seeds, device)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        chosen = choose(scores, self._sampling, self._generators)
        index = torch.tensor(chosen, device=scores.device)[:, None]
        return torch.full_like(scores, -torch.inf).scatter(1, index, 0.0)


def generate(
    module: Any,
    facts: ModelFacts,
    prompts: list[Tensor],
    sampling: Sampling,
    stop_ids: Collection[int],
    seeds: list[int] | None,
    together: bool = False,
) -> list[Tensor]:
    """A completion of each prompt, up to and with its first stop token.

    ``together`` all ranks run until the last has its completions.

    Raises:
        ValueError: If a prompt is empty or does not fit, or the model is a classifier.
    """
    _check(facts, [len(prompt) for prompt in prompts], sampling.max_new_tokens)
    if not prompts:
        return []
    if seeds is None:
        seeds = torch.randint(2**62, (len(prompts),)).tolist()
    ids, mask = _padded(prompts, facts, next(module.parameters()).device)
    stops = sorted(stop_ids)
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        pad_token_id=facts.pad_id or 0,
        eos_token_id=stops or None,
        decoder_start_token_id=facts.decoder_start_id,
    )
    with torch.compiler.set_stance("force_eager"), _plainly(module):
        found = module.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=LogitsProcessorList([_Chosen(sampling, seeds, ids.device)]),
            synced_gpus=together,
        )
    start = 1 if facts.task == "seq2seq_lm" else ids.shape[1]
    return [_up_to_stop(row[start:].cpu(), stops) for row in found]


@contextmanager
def _plainly(module: Any) -> Iterator[None]:
    """Without the model's own habits, such as beams or forced lengths, which would fill up ours."""
    habits = module.generation_config
    module.generation_config = GenerationConfig()
    try:
        yield
    finally:
        module.generation_config = habits


def _check(facts: ModelFacts, lengths: list[int], new_tokens: int) -> None:
    if facts.task == "sequence_classification":
        raise ValueError(f"generate: {facts.name} is a classifier, which writes no text")
    if 0 in lengths:
        raise ValueError(
            f"generate: prompt {lengths.index(0)} is empty; give it one token at least"
        )
    longest = max(lengths, default=0)
    needed = longest + new_tokens if facts.task == "causal_lm" else max(longest, new_tokens)
    if facts.max_positions is not None and needed > facts.max_positions:
        raise ValueError(
            f"generate: a prompt of {longest} tokens and max_new_tokens {new_tokens} are more than "
            f"the {facts.max_positions} positions that the model takes; lower max_new_tokens or "
            "cut the prompts"
        )


def _padded(
    prompts: list[Tensor], facts: ModelFacts, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The prompts [B, S] and what of them is real; a decoder's end in one column."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), facts.pad_id or 0)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        end = facts.task == "causal_lm"
        place = slice(longest - len(prompt), longest) if end else slice(len(prompt))
        ids[row, place], mask[row, place] = prompt.cpu(), 1
    return ids.to(device), mask.to(device)


def _up_to_stop(tokens: Tensor, stops: list[int]) -> Tensor:
    ends = torch.isin(tokens, torch.tensor(stops, dtype=tokens.dtype)).nonzero()
    return tokens[: int(ends[0]) + 1] if len(ends) else tokens
