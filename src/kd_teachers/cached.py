"""A teacher that has answered already."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from hf_models.model import ModelFacts
from kd_data import Batch
from kd_losses import Head, Projected, Rows, TopK
from kd_teachers.signal import FULL, TAPS, TOP_K, Needs, Signal
from kd_teachers.store.contents import HIDDEN, NONE
from kd_teachers.store.store import Store
from kd_teachers.teacher import Member, Places


class Cached:
    """What a store keeps of a teacher, which is not in memory itself.

    Args:
        store: The store.
        key: The config's key of it.
    """

    remote = False

    def __init__(self, store: Store, key: str = "teacher_cache") -> None:
        self.store, self._contents, self._key = store, store.manifest.contents, key
        given = {NONE: set(), HIDDEN: {FULL, TOP_K}}.get(self._contents.logits, {TOP_K})
        self.gives = frozenset(given | ({TAPS} if self._contents.taps else set()))
        self._head: Head | None = None

    @classmethod
    def open(cls, directory: str | Path, key: str = "teacher_cache") -> "Cached":
        """The teacher of a directory; see `Store` for what it raises."""
        return cls(Store(Path(directory)), key)

    @property
    def facts(self) -> ModelFacts:
        """Those of the model that has answered."""
        return self.store.manifest.facts

    def lacks(self, needs: Needs) -> str | None:
        """A layer, a temperature or tokens that are not kept."""
        kept, where = self._contents, f"teacher_cache {self.store.directory}"
        again = "make another cache with this config"
        layers = sorted(needs.taps - {(tap.stack, tap.layer) for tap in kept.taps})
        if layers:
            stack, layer = layers[0]
            return (
                f"the output of the teacher's {stack} layer {layer}, which {where} has not; {again}"
            )
        if not needs.distribution or kept.logits == HIDDEN:
            return None
        missing = [r.missing(kept.k, kept.temperatures, kept.vocabulary) for r in needs.reads]
        return next((f"more than {where} keeps: it {one}" for one in missing if one), None)

    def members(self) -> dict[str, Member]:
        """The model that has answered."""
        return {self._key: Member(self.facts)}

    def stores(self) -> dict[str, Store]:
        """Its own."""
        return {self._key: self.store}

    def describe(self) -> list[str]:
        """Whose answers they are, and what they take."""
        return [f"teacher: {self.store.describe()}"]

    def load(self, placement: Places) -> None:
        """Put the head on the device, where there is one."""
        if self.store.keeps_hidden:
            head = self.store.head()
            bias = None if head.bias is None else head.bias.to(placement.device)
            self._head = head._replace(weight=head.weight.to(placement.device), bias=bias)

    def read_ahead(self, batch: Batch) -> Batch:
        """The batch with what is kept of its documents."""
        return batch.with_kept(self.store.read(batch))

    def signal(self, batch: Batch, needs: Needs) -> Signal:
        """What was kept, where the run lives."""
        kept = batch.kept
        if kept is None:
            kept = {n: t.to(batch.labels.device) for n, t in self.store.read(batch).items()}
        wanted = {tap for tap in self._contents.taps if (tap.stack, tap.layer) in needs.taps}
        taps = {
            (tap.stack, tap.layer): batch.at_student_positions(kept[tap.name]) for tap in wanted
        }
        return Signal(self._rows(kept, batch) if needs.distribution else None, taps)

    def _rows(self, kept: Mapping[str, Tensor], batch: Batch) -> Rows:
        if self._contents.logits == HIDDEN:
            assert self._head is not None
            return Projected(_at_rows(kept["hidden"], batch), self._head)
        return top_k_rows(kept, batch, self._contents.vocabulary, self._contents.temperatures)


def top_k_rows(
    kept: Mapping[str, Tensor], batch: Batch, vocabulary: int, temperatures: tuple[float, ...]
) -> TopK:
    """What was kept of the most probable ids, at the student's positions."""
    parts = {name: _at_rows(kept[name], batch) for name in ("ids", "log_probs", "rest")}
    return TopK(**parts, size=vocabulary, temperatures=temperatures)


def _at_rows(kept: Tensor, batch: Batch) -> Tensor:
    """[B, T, numbers] at the teacher's positions → [N, numbers] at the student's."""
    return batch.at_student_positions(kept).flatten(0, 1)
