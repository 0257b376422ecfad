"""One text in the tokens of a student and of a teacher with another tokenizer.

Shapes: B batch, S positions of the student, T positions of the teacher, D width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset


class TwoTokenizers(Dataset):
    """The student's samples, each with ``teacher_tokens`` and ``teacher_labels`` of the same text.

    Args:
        student: A dataset built with the student's tokenizer.
        teacher: The same dataset built with the teacher's.

    Raises:
        ValueError: If they have not the same number of samples.
    """

    def __init__(self, student: Any, teacher: Any) -> None:
        if len(student) != len(teacher):
            raise ValueError(
                f"the dataset has {len(student)} samples with the student's tokenizer, but "
                f"{len(teacher)} with the teacher's"
            )
        self._student, self._teacher = student, teacher

    def __len__(self) -> int:
        return len(self._student)

    def __getitem__(self, index: int) -> dict[str, Any]:
        teacher = self._teacher[index]
        return self._student[index] | {
            "teacher_tokens": teacher["tokens"],
            "teacher_labels": teacher["labels"],
        }


def match_targets(labels: Tensor, teacher_labels: Tensor, ignore_index: int) -> dict[str, Tensor]:
    """Pair the n-th target of the student with the n-th of the teacher, sample by sample.

    Args:
        labels: The student's shifted labels, [B, S].
        teacher_labels: The teacher's, [B, T].
        ignore_index: Label of positions without a target.

    Returns:
        - ``matched`` [B, S] bool: positions of the student that have a counterpart.
        - ``teacher_index`` [B, S] int64: the counterpart's position; any where there is none.
    """
    target, teacher_target = labels != ignore_index, teacher_labels != ignore_index
    number = target.cumsum(1) - 1
    # Stable, so the teacher's targets come first and in their order.
    positions = (~teacher_target).int().argsort(dim=1, stable=True)
    return {
        "matched": target & (number < teacher_target.sum(1, keepdim=True)),
        "teacher_index": positions.gather(1, number.clamp(0, positions.shape[1] - 1)),
    }


def of_teacher(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch that the teacher reads: the same one, unless it has tokens of its own."""
    if "teacher_tokens" not in batch:
        return batch
    return {"tokens": batch["teacher_tokens"], "labels": batch["teacher_labels"]}


def at_student_positions(hidden: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """The teacher's hidden states [B, T, D] moved to the student's positions, [B, S, D]."""
    if "teacher_index" not in batch:
        return hidden
    index = batch["teacher_index"].unsqueeze(-1)
    return torch.take_along_dim(hidden, index, dim=1)
