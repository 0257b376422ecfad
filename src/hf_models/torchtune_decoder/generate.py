"""Completions of a torchtune decoder, each token read once.

Shapes: B prompts that are not finished, L columns of the cache, V vocabulary.
"""

from collections.abc import Callable, Collection
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torchtune.modules.common_utils import local_kv_cache

from hf_models.model import AnyRank, Sampling
from hf_models.precision import compute_dtype
from hf_models.sampling import choose, seeded
from hf_models.torchtune_decoder.packed import Logits, packed, packed_logits
from kd_losses import Head

_OFTEN = 8  # tokens


def generate(
    module: Any,
    head: Callable[[], Head],
    prompts: list[Tensor],
    sampling: Sampling,
    stop_ids: Collection[int],
    seeds: list[int] | None,
    any_rank: AnyRank | None = None,
) -> list[Tensor]:
    """A completion of each prompt, up to and with its first stop token.

    Prompts are padded on the left, so that all of them end in one column. A finished one leaves the
    batch and its caches.

    Args:
        module: A decoder in eval mode whose forward ends with the final norm.
        head: How hidden states become logits, once a forward has run.
        prompts: Token ids [L_i] of each, of any lengths.
        sampling: How tokens are chosen.
        stop_ids: Tokens that end a completion.
        seeds: Of each completion; None draws them from torch's global generator.
        any_rank: See `hf_models.model.Model.generate`.

    Raises:
        ValueError: If a prompt is empty, or does not fit with its completion.
    """
    lengths = [len(prompt) for prompt in prompts]
    _check(lengths, sampling.max_new_tokens, module.max_seq_len)
    if not prompts:
        return []
    if seeds is None:
        seeds = torch.randint(2**62, (len(prompts),)).tolist()
    embeddings = module.tok_embeddings.weight
    batch = _Batch(module, head, prompts, sampling, stop_ids, seeds)
    caches = local_kv_cache(
        module,
        batch_size=len(prompts),
        device=embeddings.device,
        dtype=compute_dtype(module) or embeddings.dtype,
        decoder_max_seq_len=batch.width,
    )
    # Compiled layers would be compiled anew for every length.
    with (
        caches,
        packed(module) if batch.often else nullcontext(),
        torch.compiler.set_stance("force_eager"),
    ):
        unfinished = True
        while unfinished:
            if batch.rows:
                batch.write_tokens()
            else:
                batch.only_run()
            unfinished = bool(batch.rows) if any_rank is None else any_rank(bool(batch.rows))
    return [torch.tensor(completion) for completion in batch.completions]


class _Batch:
    """Prompts and what is written behind them; ``rows`` are the numbers of those unfinished."""

    def __init__(
        self,
        module: Any,
        head: Callable[[], Head],
        prompts: list[Tensor],
        sampling: Sampling,
        stop_ids: Collection[int],
        seeds: list[int],
    ) -> None:
        self._module, self._head = module, head
        self._logits: Logits | None = None
        # Of one row, or of few tokens, packing the weights takes longer than it saves.
        self.often = len(prompts) > 1 and sampling.max_new_tokens >= _OFTEN
        self._sampling, self._stop_ids = sampling, stop_ids
        device = module.tok_embeddings.weight.device
        self._generators = seeded(seeds, device)
        self._tokens, self._pads = _left_padded(prompts, device)
        self._column = 0
        self.width = self._tokens.shape[1] + sampling.max_new_tokens
        self.rows = list(range(len(prompts)))
        self.completions: list[list[int]] = [[] for _ in prompts]

    def write_tokens(self) -> None:
        """One token of each row; those that end with it are done."""
        hidden = self._read()
        if self._logits is None:  # not before a forward has gathered the head
            self._logits = packed_logits(self._head()) if self.often else self._head().logits
        own = [self._generators[row] for row in self.rows]
        chosen = choose(self._logits(hidden), self._sampling, own)
        for row, token in zip(self.rows, chosen, strict=True):
            self.completions[row].append(token)
        full = len(self.completions[self.rows[0]]) == self._sampling.max_new_tokens
        kept = [i for i, t in enumerate(chosen) if not full and t not in self._stop_ids]
        if kept and len(kept) < len(self.rows):
            index = torch.tensor(kept, device=hidden.device)
            self._pads = self._pads[index]
            _keep_rows(self._module, index)
        if kept:
            self._tokens = torch.tensor([[chosen[i]] for i in kept], device=hidden.device)
        self.rows = [self.rows[i] for i in kept]

    def only_run(self) -> None:
        """A forward for the other ranks' sake."""
        self._module.reset_caches()
        self._tokens, self._column = self._tokens[:, :1], 0
        self._read()

    def _read(self) -> Tensor:
        """The last hidden states [B, D] of the newest tokens [B, S], which the cache takes in."""
        tokens, pads = self._tokens, self._pads
        rows = torch.arange(self._column, self._column + tokens.shape[1], device=tokens.device)
        columns = torch.arange(self.width, device=tokens.device)
        causal = columns <= rows[:, None]
        # Padding sees itself: an attention to nothing at all would be NaN, and spread.
        own = columns == rows[:, None]
        mask = (causal & (columns >= pads[:, :, None])) | own
        positions = (rows - pads).clamp(min=0)
        self._column += tokens.shape[1]
        return self._module(tokens, mask=mask, input_pos=positions)[:, -1]


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


def _keep_rows(module: Any, index: Tensor) -> None:
    """Let finished prompts go from every layer's cache."""
    for layer in module.layers:
        cache = layer.attn.kv_cache
        cache.k_cache, cache.v_cache = cache.k_cache[index], cache.v_cache[index]
        cache.batch_size = len(index)
