"""A micro-batch: what the models read, what counts where, and which documents these are.

Shapes: B samples, S positions of the student, T of a teacher that reads something else, D width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

LOGITS = "logits"  # the place of what is computed from logits; other places are stacks of layers
ENCODER, DECODER = "encoder", "decoder"


@dataclass(frozen=True)
class TeacherInputs:
    """What a teacher reads that has a tokenizer, or a prompt, of its own.

    Attributes:
        inputs: The teacher's keyword arguments.
        labels: [B, T], its own targets.
        documents: [B, T] int64, the number of a position's document; -1 for padding.
        index: [B, S] int64: the teacher's position that a position of the student meets; any where
            there is none.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    documents: Tensor
    index: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "TeacherInputs":
        """With each tensor replaced by its ``function``."""
        own = (function(one) for one in (self.labels, self.documents, self.index))
        return TeacherInputs(_map(self.inputs, function), *own)


@dataclass(frozen=True)
class Batch:
    """What a step reads of a few samples.

    Attributes:
        inputs: The student's own keyword arguments, such as ``tokens`` [B, S].
        labels: [B, S], the target of each position of the logits, or the ignored index.
        scopes: Scope → place → bool mask of the positions that count there. Scopes are ``labels``
            (with a target), ``all`` (no padding), ``prompt`` (no padding, no target) and, where the
            teacher reads something else, ``matched``; places are ``logits`` and the stacks.
        documents: Place → [B, S] int64, the number of the document that a position belongs to,
            counted from 0 over the batch; -1 for padding.
        sample_keys: [documents, 2] int64, a hash of the tokens that the teacher reads of each.
        teacher: What a teacher with another tokenizer, or with a prompt before the text, reads;
            None where it reads the same.
        kept: What was kept of a teacher's answers about these documents, by its name in the store;
            None where a teacher is asked anew.
        routes: [documents] int64, the number of the only teacher of each, -1 for all of them; None
            where no document has one of its own.
        written: Whether the student has written what is labelled: then nobody knows a right answer.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    scopes: Mapping[str, Mapping[str, Tensor]]
    documents: Mapping[str, Tensor]
    sample_keys: Tensor
    teacher: TeacherInputs | None = None
    kept: Mapping[str, Tensor] | None = None
    routes: Tensor | None = None
    written: bool = False

    def teacher_inputs(self) -> Mapping[str, Tensor]:
        """The teacher's keyword arguments: the student's own, unless it reads something else."""
        return self.inputs if self.teacher is None else self.teacher.inputs

    def teacher_documents(self, place: str) -> Tensor:
        """The teacher's `documents`: the student's own, unless it reads something else."""
        return self.documents[place] if self.teacher is None else self.teacher.documents

    def at_student_positions(self, hidden: Tensor) -> Tensor:
        """What the teacher has at its positions [B, T, D], moved to the student's, [B, S, D]."""
        if self.teacher is None:
            return hidden
        return torch.take_along_dim(hidden, self.teacher.index.unsqueeze(-1), dim=1)

    def with_kept(self, kept: Mapping[str, Tensor] | None) -> "Batch":
        """The batch with other `kept` answers."""
        return replace(self, kept=kept)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """With each tensor replaced by its ``function``; what was one tensor remains one."""
        known: dict[int, Tensor] = {}

        def once(tensor: Tensor) -> Tensor:
            if id(tensor) not in known:
                known[id(tensor)] = function(tensor)
            return known[id(tensor)]

        return Batch(
            _map(self.inputs, once),
            once(self.labels),
            _map(self.scopes, once),
            _map(self.documents, once),
            once(self.sample_keys),
            None if self.teacher is None else self.teacher.map(once),
            None if self.kept is None else _map(self.kept, once),
            None if self.routes is None else once(self.routes),
            self.written,
        )

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device. A GPU fetches it from pinned memory; nobody waits for that."""
        if device.type == "cuda":
            return self.map(lambda tensor: tensor.pin_memory().to(device, non_blocking=True))
        return self.map(lambda tensor: tensor.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by a name such as ``scopes.labels.logits``; one at two places only once."""
        named = {**self.inputs, "labels": self.labels}
        for scope, places in self.scopes.items():
            named |= {f"scopes.{scope}.{place}": mask for place, mask in places.items()}
        named |= {f"documents.{place}": numbers for place, numbers in self.documents.items()}
        named["sample_keys"] = self.sample_keys
        if self.teacher is not None:
            named |= {f"teacher.{name}": tensor for name, tensor in self.teacher.inputs.items()}
            own = ("labels", "documents", "index")
            named |= {f"teacher.{name}": getattr(self.teacher, name) for name in own}
        named |= {f"kept.{name}": tensor for name, tensor in (self.kept or {}).items()}
        if self.routes is not None:
            named["routes"] = self.routes
        first = {id(tensor): name for name, tensor in reversed(named.items())}
        return {name: tensor for name, tensor in named.items() if first[id(tensor)] == name}


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Mapping):
        return {name: _map(one, function) for name, one in value.items()}
    return function(value)
