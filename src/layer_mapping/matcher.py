"""Compare the tapped layers of a student with those of its teacher.

Shapes: B batch, S sequence, Ds and Dt the widths of student and teacher, N masked positions.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from layer_mapping.pair_losses import PairLoss
from layer_mapping.projection import Projection
from layer_mapping.strategies import Pair

PROJECTION_MODES = ("auto", "always", "never")


class MatchResult(NamedTuple):
    """What one comparison gives.

    Attributes:
        total: the pairs' sums, weighted and reduced over pairs; carries the gradient.
        per_pair: ``"s0-t3"`` → the sum over tokens of that pair, unweighted and detached.
    """

    total: Tensor
    per_pair: dict[str, Tensor]


class LayerMatcher(nn.Module):
    """The pair losses of matched layers, with a projection per pair where the widths differ.

    A loss that needs no equal widths (``PairLoss.needs_equal_widths``) gets none of its own accord.

    total = Σ_pairs w · Σ_tokens loss(A·h_student, h_teacher), divided by Σ w if the loss's
    reduction is ``"mean"``. It is a sum over tokens: divide by the number of tokens once.

    A ``Projection`` belongs to the student layer (to its n-th pair, where a student layer has
    several), so that it stays valid when the teacher layer changes.

    Args:
        pairs: ``(student, teacher)`` layers, 0-based; a pair listed twice counts twice.
        loss: how a pair is compared.
        student_dim: width Ds of the student.
        teacher_dim: width Dt of the teacher.
        projection: ``"auto"`` projects only if the widths differ and the loss needs equal ones,
            ``"always"``, ``"never"``.

    Raises:
        ValueError: for unequal widths without projection and a loss that needs equal ones, an
            unknown mode, or weights that are not one per pair.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        loss: PairLoss,
        student_dim: int,
        teacher_dim: int,
        projection: str = "auto",
    ) -> None:
        super().__init__()
        if projection not in PROJECTION_MODES:
            raise ValueError(
                f"projection must be one of {', '.join(PROJECTION_MODES)}, not {projection!r}"
            )
        unequal = loss.needs_equal_widths and student_dim != teacher_dim
        if projection == "never" and unequal:
            raise ValueError(
                f"the student's width {student_dim} differs from the teacher's {teacher_dim}: "
                f"{type(loss).__name__} needs projection 'auto' or 'always'; RelationalLoss does "
                "without"
            )
        weights = loss.pair_weights if loss.pair_weights is not None else [1.0] * len(pairs)
        if len(weights) != len(pairs):
            raise ValueError(f"{len(weights)} pair_weights for {len(pairs)} layer pairs")
        scale = sum(weights) if loss.reduction == "mean" else 1.0
        self.loss = loss
        self.pairs = list(pairs)
        self._weights = [weight / scale for weight in weights]
        self.projections = nn.ModuleDict()
        if projection == "always" or unequal:
            for name in _projection_names(self.pairs):
                self.projections[name] = Projection(student_dim, teacher_dim)

    @property
    def student_layers(self) -> list[int]:
        """The student layers to tap, sorted."""
        return sorted({student for student, _ in self.pairs})

    @property
    def teacher_layers(self) -> list[int]:
        """The teacher layers to tap, sorted."""
        return sorted({teacher for _, teacher in self.pairs})

    def set_pairs(self, pairs: Sequence[Pair]) -> None:
        """Change the teacher layers, keeping weights and projections with their student layers.

        Raises:
            ValueError: if the student layers are not the same, in the same order.
        """
        before, after = [s for s, _ in self.pairs], [s for s, _ in pairs]
        if before != after:
            raise ValueError(f"the student layers of the pairs changed from {before} to {after}")
        self.pairs = list(pairs)

    def forward(
        self,
        student_taps: Mapping[int, Tensor],
        teacher_taps: Mapping[int, Tensor],
        mask: Tensor,
        documents: Tensor | None = None,
    ) -> MatchResult:
        """Compare every pair on the masked positions; the teacher takes no gradient.

        Args:
            student_taps: layer → output [B, S, Ds].
            teacher_taps: layer → output [B, S, Dt].
            mask: bool [B, S], True where the position counts.
            documents: int64 [B, S], the number of the document that a position belongs to. None:
                each of the B rows is one.
        """
        if documents is None:
            documents = torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask)
        index = mask.flatten().nonzero().squeeze(-1)
        documents_N = documents.flatten().index_select(0, index)
        # Zero pairs still give a sum.
        total = torch.zeros((), device=mask.device)
        per_pair = {}
        names = _projection_names(self.pairs)
        for (student, teacher), name, weight in zip(self.pairs, names, self._weights, strict=True):
            student_ND = student_taps[student].flatten(0, 1).index_select(0, index)
            teacher_ND = teacher_taps[teacher].detach().flatten(0, 1).index_select(0, index)
            if self.projections:
                student_ND = self.projections[name](student_ND)
            pair_sum = self.loss(student_ND, teacher_ND, documents_N)
            total = total + weight * pair_sum
            per_pair[f"s{student}-t{teacher}"] = pair_sum.detach()
        return MatchResult(total, per_pair)


def _projection_names(pairs: Sequence[Pair]) -> list[str]:
    seen: Counter[int] = Counter()
    names = []
    for student, _ in pairs:
        names.append(f"s{student}_{seen[student]}" if seen[student] else f"s{student}")
        seen[student] += 1
    return names
