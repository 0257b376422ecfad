"""What a store keeps of each position that a teacher has read.

Shapes: R positions ("rows"), D width, V vocabulary, K tokens kept, T temperatures.
"""

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from kd_data.batch import LOGITS, Batch
from kd_losses import Head, TopK
from kd_teachers.signal import Signal

HIDDEN, TOP_K, NONE = "hidden", "top_k", "none"
_AT_ONCE = 2**25  # logits that are made at once


class Tapped(BaseModel):
    """A layer whose output is kept."""

    model_config = ConfigDict(frozen=True)

    stack: str
    layer: int
    width: int

    @property
    def name(self) -> str:
        """Its tensor's."""
        return f"{self.stack}.{self.layer}"


class Contents(BaseModel):
    """What is kept.

    Attributes:
        logits: ``hidden``: the states that the head is applied to, with the head itself kept once:
            any loss can be computed of them. ``top_k``: the ``k`` most probable tokens [K] int32,
            their log-probabilities [K], and the log of the others' mass at each temperature [T].
            ``none``.
        dtype: Of hidden states and layers.
        width: Of hidden states.
        vocabulary: Number of ids, or classes, of the head.
        k: Tokens that are kept, at most the vocabulary.
        temperatures: See `kd_losses.TopK`.
        log_probs: Type of the log-probabilities; ``float16`` halves them and rounds them to 11
            bits.
        taps: Layers whose outputs are kept.
    """

    model_config = ConfigDict(frozen=True)

    logits: Literal["hidden", "top_k", "none"]
    dtype: str
    width: int
    vocabulary: int
    k: int = 0
    temperatures: tuple[float, ...] = ()
    log_probs: Literal["float32", "float16"] = "float32"
    taps: tuple[Tapped, ...] = ()

    @property
    def places(self) -> list[str]:
        """Where positions are counted: ``logits`` and the stacks of kept layers."""
        of_logits = [] if self.logits == NONE else [LOGITS]
        return of_logits + sorted({tap.stack for tap in self.taps})

    def tensors(self) -> dict[str, tuple[str, int, torch.dtype]]:
        """Name → place, numbers of each position, and their type."""
        dtype = getattr(torch, self.dtype)
        found: dict[str, tuple[str, int, torch.dtype]] = {}
        if self.logits == HIDDEN:
            found["hidden"] = LOGITS, self.width, dtype
        elif self.logits == TOP_K:
            found["ids"] = LOGITS, self.k, torch.int32
            found["log_probs"] = LOGITS, self.k, getattr(torch, self.log_probs)
            found["rest"] = LOGITS, len(self.temperatures), torch.float32
        return found | {tap.name: (tap.stack, tap.width, dtype) for tap in self.taps}

    def words(self) -> str:
        """What is kept, for people."""
        layers = f"{len(self.taps)} layers" if self.taps else ""
        logits = {HIDDEN: "final hidden states", TOP_K: f"the {self.k} most probable tokens"}
        return " and ".join(filter(None, [logits.get(self.logits, ""), layers]))

    def position_bytes(self) -> dict[str, int]:
        """Place → bytes of one position."""
        sizes = dict.fromkeys(self.places, 0)
        for place, numbers, dtype in self.tensors().values():
            sizes[place] += numbers * dtype.itemsize
        return sizes

    @torch.no_grad()
    def of_signal(self, signal: Signal, batch: Batch) -> dict[str, Tensor]:
        """What is kept of an answer about a batch, each [R, numbers], on the CPU.

        Padding is left out; positions are in the order of the batch's documents.
        """
        found: dict[str, Tensor] = {}
        if self.logits != NONE:
            rows: Any = signal.rows
            hidden = rows.hidden[batch.documents[LOGITS].flatten() >= 0]
            found = {"hidden": hidden}
            if self.logits == TOP_K:
                found = self._favourites(hidden, rows.head)
        for tap in self.taps:
            own = batch.documents[tap.stack] >= 0
            found[tap.name] = signal.taps[tap.stack, tap.layer][own]
        wanted = self.tensors()
        return {name: tensor.to("cpu", wanted[name][2]) for name, tensor in found.items()}

    def _favourites(self, hidden: Tensor, head: Head) -> dict[str, Tensor]:
        rows = max(1, _AT_ONCE // self.vocabulary)
        parts = [
            TopK.of_logits(head.logits(part)[:, : self.vocabulary], self.k, self.temperatures)
            for part in hidden.split(rows)
        ]
        names = "ids", "log_probs", "rest"
        return {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
