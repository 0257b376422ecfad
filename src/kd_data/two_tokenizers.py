"""One text in the tokens of a student and of a teacher with another tokenizer.

Shapes: S positions of the student.
"""

from functools import cached_property
from typing import Any

from torch.utils.data import Dataset

from kd_data.pairing import labelled_runs, pair_targets

UNPAIRED = -1  # in ``teacher_index``
_LOOK_AT = 100  # samples, for the share of targets that are paired


class TwoTokenizers(Dataset):
    """The student's samples, with the teacher's tokens of the same text and where they meet.

    A sample has ``teacher_tokens`` and ``teacher_labels`` too, and ``teacher_index`` [S]: for each
    position of the student the position of the teacher whose target ends at the same character of
    the text, or ``UNPAIRED``. See `pair_targets`.

    Args:
        student: A dataset built with the student's tokenizer.
        teacher: The same dataset built with the teacher's.
        tokenizer: The student's tokenizer.
        teacher_tokenizer: The teacher's.
        ignore_index: Label of tokens that are no target.

    Raises:
        ValueError: If they have not the same number of samples.
    """

    def __init__(
        self,
        student: Any,
        teacher: Any,
        tokenizer: Any,
        teacher_tokenizer: Any,
        ignore_index: int = -100,
    ) -> None:
        if len(student) != len(teacher):
            raise ValueError(
                f"the dataset has {len(student)} samples with the student's tokenizer, but "
                f"{len(teacher)} with the teacher's"
            )
        self._student, self._teacher = student, teacher
        self._tokenizers = tokenizer, teacher_tokenizer
        self._ignore_index = ignore_index

    def __len__(self) -> int:
        return len(self._student)

    def __getitem__(self, index: int) -> dict[str, Any]:
        samples = self._student[index], self._teacher[index]
        student, teacher = (
            labelled_runs(sample["tokens"], sample["labels"], tokenizer, self._ignore_index)
            for sample, tokenizer in zip(samples, self._tokenizers, strict=True)
        )
        pairs = pair_targets(student, teacher)
        return samples[0] | {
            "teacher_tokens": samples[1]["tokens"],
            "teacher_labels": samples[1]["labels"],
            "teacher_index": [pairs.get(i, UNPAIRED) for i in range(len(samples[0]["tokens"]))],
        }

    @cached_property
    def paired_share(self) -> float | None:
        """Of the first 100 samples' targets, the share with a counterpart; None without targets."""
        targets = paired = 0
        for i in range(min(len(self), _LOOK_AT)):
            sample = self[i]
            targets += sum(int(label) != self._ignore_index for label in sample["labels"][1:])
            paired += sum(index != UNPAIRED for index in sample["teacher_index"])
        return paired / targets if targets else None
