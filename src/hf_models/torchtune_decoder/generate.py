"""Completions of a torchtune decoder, each token read once.

Shapes: B prompts that are not finished, L columns of the cache, V vocabulary.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torchtune.modules.common_utils import local_kv_cache

from hf_models.model import Sampling
from hf_models.precision import compute_dtype
from hf_models.sampling import choose
from kd_losses import Head


def generate(
    module: Any,
    head: Head,
    prompts: list[Tensor],
    sampling: Sampling,
    stop_ids: Collection[int],
    seeds: list[int] | None,
) -> list[Tensor]:
    """A completion of each prompt, up to and with its first stop token.

    Prompts are padded on the left, so that all of them end in one column. A finished one leaves the
    batch and its caches.

    Args:
        module: A decoder in eval mode whose forward ends with the final norm.
        head: How hidden states become logits.
        prompts: Token ids [L_i] of each, of any lengths.
        sampling: How tokens are chosen.
        stop_ids: Tokens that end a completion.
        seeds: Of each completion; None draws them from torch's global generator.

    Raises:
        ValueError: If a prompt is empty, or does not fit with its completion.
    """
    lengths = [len(prompt) for prompt in prompts]
    _check(lengths, sampling.max_new_tokens, module.max_seq_len)
    if not prompts:
        return []
    if seeds is None:
        seeds = torch.randint(2**62, (len(prompts),)).tolist()
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    device = head.weight.device
    tokens, pads = _left_padded(prompts, device)
    width = tokens.shape[1] + sampling.max_new_tokens
    dtype = compute_dtype(module) or module.tok_embeddings.weight.dtype
    completions: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    # Compiled layers would be compiled anew for every length.
    with (
        local_kv_cache(
            module,
            batch_size=len(prompts),
            device=device,
            dtype=dtype,
            decoder_max_seq_len=width,
        ),
        torch.compiler.set_stance("force_eager"),
    ):
        column = 0
        for _ in range(sampling.max_new_tokens):
            logits = _next_logits(module, head, tokens, pads, column, width)
            column += tokens.shape[1]
            chosen = choose(logits, sampling, [generators[row] for row in rows])
            for row, token in zip(rows, chosen, strict=True):
                completions[row].append(token)
            kept = [i for i, token in enumerate(chosen) if token not in stop_ids]
            if not kept:
                break
            if len(kept) < len(rows):
                index = torch.tensor(kept, device=device)
                pads = pads[index]
                _keep_rows(module, index)
            rows = [rows[i] for i in kept]
            tokens = torch.tensor([[chosen[i]] for i in kept], device=device)
    return [torch.tensor(completion) for completion in completions]


def _check(lengths: list[int], new_tokens: int, limit: int) -> None:
    if 0 in lengths:
        raise ValueError(
            f"generate: prompt {lengths.index(0)} is empty; give it one token at least"
        )
    longest = max(lengths, default=0)
    if longest + new_tokens > limit:
        raise ValueError(
            f"generate: a prompt of {longest} tokens and max_new_tokens {new_tokens} are more than "
            f"the {limit} positions that the model takes; lower max_new_tokens or cut the prompts"
        )


def _left_padded(prompts: list[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """The prompts [B, S] with their ends in one column, and how much padding each has [B, 1]."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = prompt.cpu()
    pads = torch.tensor([[longest - len(prompt)] for prompt in prompts])
    return tokens.to(device), pads.to(device)


def _next_logits(
    module: Any, head: Head, tokens: Tensor, pads: Tensor, column: int, width: int
) -> Tensor:
    """The logits [B, V] after the newest tokens [B, S], which go to the columns from ``column``."""
    rows = torch.arange(column, column + tokens.shape[1], device=tokens.device)
    columns = torch.arange(width, device=tokens.device)
    causal = columns <= rows[:, None]
    # Padding sees itself: an attention to nothing at all would be NaN, and spread.
    own = columns == rows[:, None]
    mask = (causal & (columns >= pads[:, :, None])) | own
    positions = (rows - pads).clamp(min=0)
    hidden = module(tokens, mask=mask, input_pos=positions)[:, -1]
    return head.logits(hidden)


def _keep_rows(module: Any, index: Tensor) -> None:
    """Let finished prompts go from every layer's cache."""
    for layer in module.layers:
        cache = layer.attn.kv_cache
        cache.k_cache, cache.v_cache = cache.k_cache[index], cache.v_cache[index]
        cache.batch_size = len(index)
