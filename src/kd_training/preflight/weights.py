"""Whether loaded weights make sense, on a first batch."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from hf_models.model import Model
from kd_data import Batch
from kd_losses import CrossEntropy, Projected, Scoped, chunked_sums


@torch.no_grad()
def check_weights(
    student: Model, teachers: Mapping[str, Model], batch: Batch, ignore_index: int
) -> list[str]:
    """Warnings about models that know less than they should of a first batch.

    Args:
        student: The student, loaded.
        teachers: Those in memory, loaded, by their key of the config.
        batch: A micro-batch on the models' device.
        ignore_index: Label of the positions without a target.
    """
    if not teachers:
        return []
    student_ce = _cross_entropy(student, batch.inputs, batch.labels, ignore_index)
    found = []
    for key, teacher in teachers.items():
        name = "the teacher" if len(teachers) == 1 else f"the teacher {key.split('.')[1]}"
        found += _of_teacher(name, teacher, student_ce, batch, ignore_index)
    return found


def _of_teacher(
    name: str, teacher: Model, student_ce: float, batch: Batch, ignore_index: int
) -> list[str]:
    labels = batch.labels if batch.teacher is None else batch.teacher.labels
    teacher_ce = _cross_entropy(teacher, batch.teacher_inputs(), labels, ignore_index)
    chance = math.log(teacher.head().weight.shape[0])
    warnings = []
    if teacher_ce >= chance:
        warnings.append(
            f"{name}'s cross-entropy on the first batch is {teacher_ce:.2f}, no better than "
            f"chance ({chance:.2f}); see whether its weights, tokenizer and prompts fit the data"
        )
    # With a tokenizer of its own the teacher predicts other, longer or shorter, tokens.
    same = torch.equal(labels[labels != ignore_index], batch.labels[batch.labels != ignore_index])
    if teacher_ce > student_ce and same:
        warnings.append(
            f"{name}'s cross-entropy on the first batch, {teacher_ce:.2f}, is worse than "
            f"the student's, {student_ce:.2f}; consider tuning it on the data first"
        )
    return warnings


def _cross_entropy(
    model: Model, inputs: Mapping[str, Tensor], labels: Tensor, ignore_index: int
) -> float:
    was_training = model.module.training
    model.module.eval()
    total, count = summed_cross_entropy(model, inputs, labels, ignore_index)
    model.module.train(was_training)
    return total / max(count, 1)


def summed_cross_entropy(
    model: Model, inputs: Mapping[str, Tensor], labels: Tensor, ignore_index: int
) -> tuple[float, int]:
    """The labels' cross-entropy, summed, in nats, and the number of labels."""
    rows = Projected(model.view(inputs).hidden.flatten(0, 1), model.head())
    labels = labels.flatten()
    term = Scoped(CrossEntropy(), labels != ignore_index, 1.0)
    sums = chunked_sums(rows, None, labels, [term], ignore_index=ignore_index)
    return sums.sums[0].item(), int(term.mask.sum())
