"""A teacher of which only the most probable ids of each row are known.

Shape suffixes: N tokens, M ids asked for, K ids kept, V vocabulary, T temperatures.
"""

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from kd_losses.divergences.categories import KeptIds
from kd_losses.functional import EXCLUDED, require, topk_indices, upcast
from kd_losses.reads import Reads


class ReadsTopK(Protocol):
    """What can be computed from the most probable ids: see `KDLoss` and `RowTerm`."""

    def per_token_top_k(self, student_logits: Tensor, teacher: "TopK", labels: Tensor) -> Tensor:
        """Return its value of every row."""

    def per_token_top_k_and_grad(
        self, student_logits: Tensor, teacher: "TopK", labels: Tensor, weight: float
    ) -> tuple[Tensor, Tensor]:
        """Return that and its weighted gradient."""


@dataclass(frozen=True, eq=False)
class TopK:
    """Rows that are a teacher's K most probable ids and, as one number, all others together.

    They are `Rows` of `chunked_sums`, which never makes a row of V logits of them. At temperature τ
    the teacher is a distribution over K + 1 categories: ``log p_i = log_probs_i / τ − Z`` for each
    id kept and ``log p_B = rest_τ − Z`` for all others together, Z their logsumexp.

    Args:
        ids: ``[N, K]`` integers, no id twice in a row.
        log_probs: ``[N, K]``, their log-probabilities at temperature 1, largest first.
        rest: ``[N, T]``, for each temperature τ the logarithm of ``Σ p_j^(1/τ)`` over the ids j
            that were not kept; −inf where that is 0. Of no meaning where K = V.
        size: V.
        temperatures: the T temperatures of ``rest``.

    Raises:
        ValueError: if the shapes do not fit together, or a temperature is not above 0.
    """

    ids: Tensor
    log_probs: Tensor
    rest: Tensor
    size: int
    temperatures: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        shape, rest = self.ids.shape, (*self.ids.shape[:1], len(self.temperatures))
        fits = len(shape) == 2 and self.log_probs.shape == shape and self.rest.shape == rest
        if not fits or self.ids.is_floating_point():
            raise ValueError(
                "ids must be integers [N, K], log_probs [N, K] and rest [N, "
                f"{len(self.temperatures)}], got {self.ids.dtype} {list(shape)}, "
                f"{list(self.log_probs.shape)} and {list(self.rest.shape)}"
            )
        require(0 < shape[1] <= self.size, "K", shape[1], f"within [1, {self.size}]")
        for one in self.temperatures:
            require(one > 0, "temperatures", one, "above 0")

    @classmethod
    def of_logits(
        cls,
        logits: Tensor,
        k: int,
        temperatures: tuple[float, ...] = (1.0,),
        dtype: torch.dtype | None = None,
    ) -> "TopK":
        """Return what is to be kept of whole rows.

        Args:
            logits: ``[N, V]``.
            k: how many ids to keep; all of them if the vocabulary is smaller.
            temperatures: those at which the mass of the others is wanted.
            dtype: type of the results; None for that of the arithmetic, fp32 or wider.
        """
        require(k > 0, "k", k, "above 0")
        logits_NV = upcast(logits.detach())
        ids = topk_indices(logits_NV, k)
        logsumexp = logits_NV.logsumexp(-1, keepdim=True)
        # What is left is summed by itself: 1 − Σ p of the kept would lose it below 1e-7.
        others = logits_NV.scatter(-1, ids, -torch.inf)
        rest = [(others / t).logsumexp(-1, keepdim=True) - logsumexp / t for t in temperatures]
        log_probs = logits_NV.gather(-1, ids) - logsumexp
        rest_NT = torch.cat(rest, dim=-1) if rest else logits_NV.new_empty(len(ids), 0)
        dtype = dtype or logits_NV.dtype
        size = logits_NV.shape[-1]
        return cls(ids, log_probs.to(dtype), rest_NT.to(dtype), size, temperatures)

    def log_p(self, temperature: float = 1.0) -> Tensor:
        """Return the log-probabilities of the K + 1 categories, the others last ``[N, K + 1]``.

        A rest of −inf counts as the smallest number: a category of probability 0 would make some
        divergences infinite. Where K = V there is no other id, and its probability is 0.
        """
        rest = self._rest(temperature)
        if self.ids.shape[1] == self.size:
            rest = torch.full_like(rest, EXCLUDED)
        log_probs = upcast(self.log_probs) / temperature
        return torch.cat([log_probs, rest], dim=-1).log_softmax(-1)

    def holds(self, ids_NM: Tensor) -> Tensor:
        """Return which of any ids ``[N, M]`` were kept."""
        return self._same(ids_NM).any(-1)

    def log_probs_at(self, ids_NM: Tensor) -> Tensor:
        """Return log-probabilities ``[N, M]`` at any ids; the rest must be known at temperature 1.

        Those that were not kept share what is left evenly, ``log rest − log(V − K)``.
        """
        same = self._same(ids_NM)
        found = upcast(self.log_probs).gather(-1, same.to(torch.uint8).argmax(-1))
        each = self._rest(1.0) - math.log(max(self.size - self.ids.shape[1], 1))
        return found.where(same.any(-1), each)

    def _rest(self, temperature: float) -> Tensor:
        """Return the logarithm of what is left ``[N, 1]``, finite."""
        known = temperature in self.temperatures
        require(known, "temperature", temperature, f"in {self.temperatures}")
        place = self.temperatures.index(temperature)
        rest = upcast(self.rest[:, place : place + 1])
        return rest.masked_fill(rest.isneginf(), math.log(torch.finfo(rest.dtype).tiny))

    def _same(self, ids_NM: Tensor) -> Tensor:
        return ids_NM.unsqueeze(-1) == self.ids.unsqueeze(1)

    # As rows of the chunked pass.

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.size

    def ready(self) -> "TopK":
        """Return it without gradients."""
        return replace(self, log_probs=self.log_probs.detach(), rest=self.rest.detach())

    def cut(self, vocab_size: int) -> "TopK":
        """Return it, if the others have no further ids: their mass could not be told apart.

        Raises:
            ValueError: if they have.
        """
        if vocab_size != self.size:
            raise ValueError(
                f"the teacher's most probable ids were kept out of {self.size}, of which the "
                f"student has {vocab_size}: keep them again out of the first {vocab_size}"
            )
        return self

    def missing(self, reads: Reads) -> str:
        """Return what a loss reads that is not there, in words; "" if nothing."""
        return reads.missing(self.ids.shape[1], self.temperatures, self.size)

    def new_buffer(self, rows: int) -> Tensor:
        """Nothing: there are no logits."""
        return self.log_probs.new_empty(0)

    def chunk_(self, positions: Tensor, buffer: Tensor) -> "TopK":
        """Return the rows at ``positions``."""
        return replace(
            self,
            ids=self.ids[positions].long(),
            log_probs=self.log_probs[positions],
            rest=self.rest[positions],
        )

    def tile(self, part: slice, dtype: torch.dtype) -> "TopK":
        """Return some of a chunk's rows in the type of the loss arithmetic."""
        return replace(
            self,
            ids=self.ids[part],
            log_probs=self.log_probs[part].to(dtype),
            rest=self.rest[part].to(dtype),
        )

    # As the teacher's side of a tile.

    @property
    def logits(self) -> None:
        """None: only some of them are known."""

    def copy(self) -> "TopK":
        """Return it: nobody overwrites it."""
        return self

    def categories_(self, student_logits: Tensor) -> KeptIds:
        """Return the student's distribution over the same categories; overwrites the logits."""
        return KeptIds(student_logits, self.ids)

    def per_token(self, term: ReadsTopK, student_logits: Tensor, labels: Tensor) -> Tensor:
        """Return a term of every row."""
        return term.per_token_top_k(student_logits, self, labels)

    def per_token_and_grad(
        self, term: ReadsTopK, student_logits: Tensor, labels: Tensor, weight: float
    ) -> tuple[Tensor, Tensor]:
        """Return that and its weighted gradient."""
        return term.per_token_top_k_and_grad(student_logits, self, labels, weight)
