"""Several teachers of one vocabulary, averaged.

Shapes: N = B·S rows, M teachers.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_models.model import ModelFacts
from kd_data import Batch
from kd_data.batch import LOGITS
from kd_losses import Mixture
from kd_teachers.signal import FULL, TOP_K, Needs, Signal
from kd_teachers.store.store import Store
from kd_teachers.teacher import Member, Places, Teacher


class Several:
    """Teachers by name, each with its part of the average.

    A text whose dataset has a column ``teacher`` is taught by the one that is named there, all
    others by every one of them: ``p = Σ w_m p_m / Σ w_m`` of their probabilities at temperature 1,
    or the same of their logits.

    Args:
        teachers: Each by its name.
        weights: Of each.
        average: What is averaged: ``probabilities`` or ``logits``.

    Raises:
        ValueError: If no weight is above 0, or one gives no whole distribution.
    """

    gives = frozenset({FULL, TOP_K})
    remote = False

    def __init__(
        self, teachers: Mapping[str, Teacher], weights: Mapping[str, float], average: str
    ) -> None:
        self._teachers, self._average = dict(teachers), average
        self.names = list(teachers)
        self._weights = torch.tensor([weights[name] for name in self.names])
        if not self._weights.sum() > 0:
            raise ValueError("config: teachers: no teacher has a weight above 0")
        for name, one in self._teachers.items():
            if FULL not in one.gives:
                raise ValueError(
                    f"config: teachers.{name}: its cache keeps the most probable tokens only, of "
                    "which no average can be made; make one with cache.logits=hidden"
                )

    @property
    def facts(self) -> ModelFacts:
        """The first one's."""
        return self._teachers[self.names[0]].facts

    def lacks(self, needs: Needs) -> str | None:
        """What any of them lacks."""
        missing = (one.lacks(needs) for one in self._teachers.values())
        return next((one for one in missing if one is not None), None)

    def members(self) -> dict[str, Member]:
        """Those of each."""
        return {k: v for one in self._teachers.values() for k, v in one.members().items()}

    def stores(self) -> dict[str, Store]:
        """Those of each."""
        return {k: v for one in self._teachers.values() for k, v in one.stores().items()}

    def describe(self) -> list[str]:
        """How they are averaged, and their own lines."""
        shares = (self._weights / self._weights.sum()).tolist()
        named = ", ".join(f"{n} {share:.2g}" for n, share in zip(self.names, shares, strict=True))
        own = [line for one in self._teachers.values() for line in one.describe()]
        return [f"teachers, averaged in {self._average}: {named}", *own]

    def load(self, placement: Places) -> None:
        """Load each."""
        for one in self._teachers.values():
            one.load(placement)

    def read_ahead(self, batch: Batch) -> Batch:
        """The batch with what each has ready, under its name."""
        kept: dict[str, Tensor] = {}
        for name, one in self._teachers.items():
            found = one.read_ahead(batch).kept or {}
            kept |= {f"{name}/{key}": tensor for key, tensor in found.items()}
        return batch.with_kept(kept or None)

    @torch.no_grad()
    def signal(self, batch: Batch, needs: Needs) -> Signal:
        """Ask each, and average."""
        rows: dict[str, Any] = {}
        for name, one in self._teachers.items():
            prefix = f"{name}/"
            kept = {k.removeprefix(prefix): t for k, t in (batch.kept or {}).items()
                    if k.startswith(prefix)}  # fmt: skip
            rows[name] = one.signal(batch.with_kept(kept or None), needs).rows
        weights = self._per_row(batch)
        mixed = Mixture(list(rows.values()), weights, self._average)
        named = {name: (rows[name], weights[:, i] > 0) for i, name in enumerate(self.names)}
        return Signal(mixed, {}, named)

    def _per_row(self, batch: Batch) -> Tensor:
        """The weight of each teacher for each row, [N, M]."""
        documents = batch.documents[LOGITS].flatten()
        weights = self._weights.to(documents.device).expand(len(documents), -1)
        if batch.routes is None:
            return weights
        # Padding has no document: whoever is taken for it, it counts nowhere.
        routes = batch.routes[documents.clamp(min=0)][:, None] if len(batch.routes) else None
        if routes is None:
            return weights
        mine = routes == torch.arange(len(self.names), device=documents.device)
        return torch.where(routes < 0, weights, mine.to(weights.dtype))
