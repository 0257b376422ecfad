"""The ids that student and teacher share."""

import torch
from torch import Tensor

# Heads of one tokenizer are padded to multiples of at most this, so widths that differ by less
# are two paddings of one vocabulary; widths further apart are two vocabularies.
MAX_PADDING = 1024

# Finite stand-in for -inf: its probability is exactly 0, its products are 0 and not NaN.
EXCLUDED = -1e30


def shared_vocab_size(student_size: int, teacher_size: int) -> int:
    """Return how many ids both heads have.

    Raises:
        ValueError: if the widths are too far apart to be two paddings of one vocabulary.
    """
    if abs(student_size - teacher_size) >= MAX_PADDING:
        raise ValueError(
            f"student vocabulary {student_size} and teacher vocabulary {teacher_size} are not one "
            "vocabulary padded differently: use models that share a tokenizer"
        )
    return min(student_size, teacher_size)


def cut_to_shared(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Drop the padding ids at the end that only one side has."""
    size = shared_vocab_size(student_logits.shape[-1], teacher_logits.shape[-1])
    return student_logits[..., :size], teacher_logits[..., :size]


def exclude(logits: Tensor) -> Tensor:
    """Exclude the ids with a logit of -inf, one side on its own."""
    return logits.masked_fill(torch.isneginf(logits), EXCLUDED)


def drop_excluded(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Exclude from both sides the ids to which either side gives a logit of -inf.

    What one model rules out is not part of the support that the two share, exactly like a padding
    id: both distributions are renormalised over the rest, and every divergence stays finite.
    """
    excluded = torch.isneginf(student_logits) | torch.isneginf(teacher_logits)
    return (
        student_logits.masked_fill(excluded, EXCLUDED),
        teacher_logits.masked_fill(excluded, EXCLUDED),
    )
