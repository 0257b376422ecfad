"""A micro-batch: what the models read, what counts where, and which documents these are."""

from dataclasses import dataclass

from torch import Tensor

# The place of whatever is computed from logits; the other places are the stacks of layers.
LOGITS = "logits"


@dataclass
class TeacherInputs:
    """What a teacher reads that has a tokenizer of its own.

    Attributes:
        inputs: The teacher's keyword arguments.
        labels: [B, T], its own targets.
        index: [B, S] int64: the teacher's position that a position of the student meets; any where
            there is none.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    index: Tensor


@dataclass
class Batch:
    """What a step reads of a few samples.

    Attributes:
        inputs: The student's own keyword arguments, such as ``tokens`` [B, S].
        labels: [B, S], the target of each position of the logits, or the ignored index.
        scopes: Scope (``labels``, ``all``, ``prompt``, ``matched``) → place → bool mask of the
            positions that count there. Places are ``logits`` and the stacks, ``decoder`` for one.
        documents: Place → the number of the document that each position belongs to, counted from 0
            over the batch; -1 for padding.
        sample_keys: [documents, 2] int64, a hash of what the teacher reads of each document.
        teacher: What a teacher with another tokenizer reads; None where it reads the same.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    scopes: dict[str, dict[str, Tensor]]
    documents: dict[str, Tensor]
    sample_keys: Tensor
    teacher: TeacherInputs | None = None
