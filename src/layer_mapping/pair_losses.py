"""How far a student layer's output is from a teacher layer's, summed over tokens.

Shapes: N tokens, D width (the same on both sides, unless a loss says otherwise; see
``LayerMatcher`` for unequal widths).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REDUCTIONS = ("mean", "sum")
# Vectors shorter than this have no direction; their gradient would be larger than 1 / _MIN_NORM.
_MIN_NORM = 1e-8


class PairLoss(nn.Module):
    """Base of the pair losses: a subclass says how far apart two tokens are.

    It overrides ``distance``, or ``distance_in_documents`` where a token's distance depends on
    other tokens; those of other documents must not matter, or the loss would depend on which
    documents happen to share a batch.

    Attributes:
        needs_equal_widths: whether the two sides are compared entry by entry. False: they are
            compared as they are, and no projection is made unless it is asked for.

    Args:
        layer_norm: normalise both sides over the width first (no learned scale or shift).
        reduction: ``"mean"`` or ``"sum"`` over pairs, applied by ``LayerMatcher``. The mean is
            weighted: Σ w·loss / Σ w.
        pair_weights: one non-negative weight per pair, in the pairs' order. Default: all 1.

    Raises:
        ValueError: for an unknown reduction, or weights that are negative or all zero.
    """

    needs_equal_widths = True

    def __init__(
        self,
        layer_norm: bool = False,
        reduction: str = "mean",
        pair_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, not {reduction!r}")
        if pair_weights is not None and (
            not all(weight >= 0 for weight in pair_weights) or sum(pair_weights) == 0
        ):
            raise ValueError(
                f"pair_weights must be non-negative and not all 0, not {list(pair_weights)}"
            )
        self.layer_norm = layer_norm
        self.reduction = reduction
        self.pair_weights = None if pair_weights is None else [float(w) for w in pair_weights]

    def forward(self, student: Tensor, teacher: Tensor, documents: Tensor | None = None) -> Tensor:
        """Sum over tokens of the distance between ``student`` and ``teacher``, both [N, D].

        Half-precision inputs are compared in fp32. The scalar is 0 for no tokens.

        Args:
            student: the student's layer at the positions that count.
            teacher: the teacher's, at the same positions.
            documents: the number of the document that each belongs to, int64 [N]. None: all
                belong to one.
        """
        if documents is None:
            documents = torch.zeros(len(student), dtype=torch.int64, device=student.device)
        sides = self._prepare(student), self._prepare(teacher)
        return self.distance_in_documents(*sides, documents).sum()

    def distance_in_documents(self, student: Tensor, teacher: Tensor, documents: Tensor) -> Tensor:
        """Distance of each token [N], which may depend on its document's other tokens.

        Of two sides [N, D] in at least fp32 and ``documents`` [N]. Here it does not: ``distance``.
        """
        return self.distance(student, teacher)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Distance of each token [N], from two sides [N, D] in at least fp32."""
        raise NotImplementedError

    def _prepare(self, hidden: Tensor) -> Tensor:
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        return F.layer_norm(hidden, hidden.shape[-1:]) if self.layer_norm else hidden


class MSELoss(PairLoss):
    """Squared difference, averaged over the width so that a weight suits models of any width.

    Σ_d (s_d − t_d)² / D per token. Constructor: see ``PairLoss``.
    """

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean squared difference of each token [N]."""
        return (student - teacher).square().mean(-1)


class NormalizedMSELoss(PairLoss):
    """Squared difference of unit vectors, summed over the width.

    Σ_d (s_d/|s| − t_d/|t|)² = 2·(1 − cos(s, t)) per token, between 0 and 4. A zero vector stays
    zero and takes no gradient. Constructor: see ``PairLoss``.

    Source: the language-model experiments of Yu, Wen, Mou, "Revisiting Intermediate-Layer
    Matching in Knowledge Distillation".
    """

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Squared distance between the unit vectors of each token [N]."""
        return (unit(student) - unit(teacher)).square().sum(-1)


class CosineLoss(NormalizedMSELoss):
    """One minus the cosine similarity.

    1 − cos(s, t) = ½·Σ_d (s_d/|s| − t_d/|t|)² per token, between 0 and 2. A zero vector stays
    zero and takes no gradient (loss ½ against any direction). Constructor: see ``PairLoss``.
    """

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """One minus the cosine of each token [N]."""
        # Not 1 − Σ s·t: near cos = 1 that cancels, and equal sides would not give exactly 0.
        return super().distance(student, teacher) / 2


def unit(hidden: Tensor) -> Tensor:
    """Each vector of ``hidden`` [..., D] at length 1; a zero vector stays 0 without gradient."""
    norm = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
    return hidden / norm.masked_fill(norm < _MIN_NORM, torch.inf)
