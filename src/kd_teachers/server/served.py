"""A teacher that answers from elsewhere."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from hf_models.model import ModelFacts
from kd_data import Batch
from kd_data.batch import LOGITS
from kd_teachers.cached import top_k_rows
from kd_teachers.server.answers import Answer, read_choice
from kd_teachers.server.client import Client
from kd_teachers.signal import TOP_K, Needs, Signal
from kd_teachers.store.store import Store
from kd_teachers.teacher import Member, Places

_TEMPERATURES = (1.0,)  # a server sums the others' mass at no other


class Served:
    """What a server says of each text: its most probable ids, and the mass of all others.

    Args:
        client: Asks the server.
        top_k: How many ids.
        batch_size: Texts of a request.
        concurrency: Requests at a time.
        vocabulary: The student's, which the teacher must share.
    """

    gives = frozenset({TOP_K})
    remote = True

    def __init__(
        self, client: Client, top_k: int, batch_size: int, concurrency: int, vocabulary: int
    ) -> None:
        self._client, self._top_k = client, top_k
        self._batch_size, self._concurrency = batch_size, concurrency
        self._vocabulary = vocabulary

    def look(self) -> None:
        """Make sure that the server has the model, and answers as it must.

        Raises:
            ValueError: If it does not.
            TeacherLost: If it does not answer at all.
        """
        self._client.find_model()
        self._ask([[0, 0]])

    @property
    def facts(self) -> ModelFacts:
        """What is known of it: the vocabulary."""
        name = self._client.model or "the server's model"
        return ModelFacts("causal_lm", self._vocabulary, None, {}, name=name)

    def lacks(self, needs: Needs) -> str | None:
        """More ids than are asked for, or a temperature."""
        missing = (r.missing(self._top_k, _TEMPERATURES, self._vocabulary) for r in needs.reads)
        return next((f"more than teacher_server gives: it {one}" for one in missing if one), None)

    def members(self) -> dict[str, Member]:
        """None that is here."""
        return {}

    def stores(self) -> dict[str, Store]:
        """None."""
        return {}

    def describe(self) -> list[str]:
        """Who answers, and how much."""
        return [f"teacher: {self.facts.name} behind a server, its {self._top_k} most probable ids"]

    def load(self, placement: Places) -> None:
        """Nothing is loaded."""

    def read_ahead(self, batch: Batch) -> Batch:
        """The batch with what the server says of its documents."""
        return batch.with_kept(self._answers(batch))

    def signal(self, batch: Batch, needs: Needs) -> Signal:
        """What it has said, where the run lives."""
        kept = batch.kept
        if kept is None:
            on_host = self._answers(batch.to(torch.device("cpu")))
            kept = {name: tensor.to(batch.labels.device) for name, tensor in on_host.items()}
        if not needs.distribution:
            return Signal(None, {})
        return Signal(top_k_rows(kept, batch, self._vocabulary, _TEMPERATURES), {})

    def _answers(self, batch: Batch) -> dict[str, Tensor]:
        """Of each document, at its positions: ids, log_probs [B, T, K] and rest [B, T, 1]."""
        documents, tokens = batch.teacher_documents(LOGITS), batch.teacher_inputs()["tokens"]
        places = [documents == number for number in range(len(batch.sample_keys))]
        answers = self._ask([tokens[place].tolist() for place in places])
        k = min(self._top_k, self._vocabulary)
        room = {
            "ids": torch.zeros(*documents.shape, k, dtype=torch.int64),
            "log_probs": torch.zeros(*documents.shape, k),
            "rest": torch.zeros(*documents.shape, 1),
        }
        for place, answer in zip(places, answers, strict=True):
            for name, tensor in room.items():
                tensor[place] = getattr(answer, name)
        return room

    def _ask(self, texts: Sequence[list[int]]) -> list[Answer]:
        size = self._batch_size
        groups = [texts[i : i + size] for i in range(0, len(texts), size)]

        def ask(group: Sequence[list[int]]) -> list[Answer]:
            choices = self._client.score(group, self._top_k)
            pairs = zip(choices, group, strict=True)
            return [read_choice(c, t, self._top_k, self._vocabulary) for c, t in pairs]

        with ThreadPoolExecutor(self._concurrency) as threads:
            return [one for answers in threads.map(ask, groups) for one in answers]
