"""How far the relations between a document's tokens are from the teacher's, summed over tokens.

Shapes: N tokens, n tokens of one document, Ds and Dt the widths of student and teacher.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from layer_mapping.pair_losses import PairLoss, unit

# Similarities that are there at once, on either side: 16 MB in fp32.
_BLOCK = 2**22


class RelationalLoss(PairLoss):
    """Squared difference of the two sides' token-to-token cosine similarities.

    1/n · Σ_j (cos(s_i, s_j) − cos(t_i, t_j))² for token i, j over the n tokens of its document that
    count (i too). It knows no directions, so either side may be rotated or scaled, and the widths
    Ds and Dt need not be equal. A zero vector is similar to nothing and takes no gradient.

    A document of n tokens costs n²·(Ds + Dt) multiplications twice over, and memory for a block of
    its similarities: those of a block are computed again in the backward.
    Constructor: see ``PairLoss``.

    Source: relations between examples instead of examples as what is distilled, Park, Kim, Lu,
    Cho, "Relational Knowledge Distillation", CVPR 2019, https://arxiv.org/abs/1904.05068; here
    between the tokens of a document.
    """

    needs_equal_widths = False

    def distance_in_documents(self, student: Tensor, teacher: Tensor, documents: Tensor) -> Tensor:
        """Mean squared difference of each token's similarities [N], from [N, Ds] and [N, Dt]."""
        order = documents.argsort(stable=True)
        lengths = documents[order].unique_consecutive(return_counts=True)[1].tolist()
        sides = (unit(side)[order].split(lengths) for side in (student, teacher))
        distances = [_of_document(*document) for document in zip(*sides, strict=True)]
        return torch.cat([*distances, student[:0].sum(-1)])[order.argsort()]


def _of_document(student: Tensor, teacher: Tensor) -> Tensor:
    rows = max(1, _BLOCK // len(student))
    blocks = zip(student.split(rows), teacher.split(rows), strict=True)
    return torch.cat(
        [
            checkpoint(
                _of_rows, *block, student, teacher, use_reentrant=False, preserve_rng_state=False
            )
            for block in blocks
        ]
    )


def _of_rows(student: Tensor, teacher: Tensor, all_student: Tensor, all_teacher: Tensor) -> Tensor:
    return (student @ all_student.T - teacher @ all_teacher.T).square().mean(-1)
