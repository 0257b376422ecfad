"""Several teachers as one: the average of their probabilities or of their logits.

Shape suffixes: N tokens, C tokens of one chunk, M members, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kd_losses.chunked.rows import LogitChunk, LogitRows, finished_tiles
from kd_losses.functional import MAX_PADDING, require
from kd_losses.reads import WHOLE, Reads

_SPACES = ("probabilities", "logits")


@dataclass(frozen=True, eq=False)
class Mixture:
    """Rows that are averages of other rows of the same tokens.

    In the space of probabilities their logits are ``log Σ_m w_m·softmax(z_m)``, in that of logits
    ``Σ_m w_m·z_m``, which is the normalised geometric mean of the probabilities. The weights of a
    row are divided by their sum; a member of weight 0 is not projected there. A chunk takes one
    buffer of logits for the average and one for the member at hand. No gradient flows into it.

    Args:
        rows: M members with logits, such as `Projected`; of heads padded to different widths the
            ids that all have.
        weights: ``[M]``, or ``[N, M]`` for weights of each row's own.
        space: ``probabilities`` or ``logits``.

    Raises:
        ValueError: if there is no member, the members or the weights do not fit together, a weight
            is negative, a row has none above 0, or what a member's rows are is not logits.
    """

    rows: Sequence[LogitRows]
    weights: Tensor
    space: str = "probabilities"

    def __post_init__(self) -> None:
        require(self.space in _SPACES, "space", self.space, " or ".join(_SPACES))
        require(len(self.rows) > 0, "rows", self.rows, "at least one")
        for one in self.rows:
            if one.missing(WHOLE):
                raise ValueError(
                    "a mixture averages whole rows, but of one of its members only the most "
                    "probable ids were kept: leave that out, or ask that teacher itself"
                )
            require(len(one) == len(self), "rows", len(one), f"{len(self)} like the first member's")
        sizes = [one.vocab_size for one in self.rows]
        of_one = max(sizes) - min(sizes) < MAX_PADDING
        require(of_one, "rows", f"{sizes} ids", "of one vocabulary")
        shapes = (len(self.rows),), (len(self), len(self.rows))
        require(
            self.weights.shape in shapes, "weights", list(self.weights.shape), "[M] or [N, M]: "
            f"{list(shapes[0])} or {list(shapes[1])}",
        )  # fmt: skip
        total = self.weights.sum(-1)
        usable = (self.weights >= 0).all() and ((total > 0) & total.isfinite()).all()
        require(bool(usable), "weights", self.weights, "at least 0, and one above 0 in each row")

    def __len__(self) -> int:
        return len(self.rows[0])

    @property
    def vocab_size(self) -> int:
        """The ids that all members have."""
        return min(one.vocab_size for one in self.rows)

    def ready(self) -> "Mixture":
        """Return it with members that are ready."""
        rows = [one.cut(self.vocab_size).ready() for one in self.rows]
        return replace(self, rows=rows, weights=self.weights.detach())

    def cut(self, vocab_size: int) -> "Mixture":
        """Return it with the first ``vocab_size`` ids only."""
        return replace(self, rows=[one.cut(vocab_size) for one in self.rows])

    def missing(self, reads: Reads) -> str:
        """Return that nothing is missing."""
        return ""

    def new_buffer(self, rows: int) -> Tensor:
        """Allocate room for the averages, in fp32 or wider."""
        empty = [one.new_buffer(0) for one in self.rows]
        wide = any(one.dtype == torch.float64 for one in empty)
        dtype = torch.float64 if wide else torch.float32
        return empty[0].new_empty(rows, self.vocab_size, dtype=dtype)

    def chunk_(self, positions: Tensor, buffer: Tensor) -> LogitChunk:
        """Average, member by member."""
        return LogitChunk(self, self.product_(positions, buffer))

    def product_(self, positions: Tensor, buffer_CV: Tensor) -> Tensor:
        """Put the averages at ``positions`` into the first rows of the buffer."""
        out_CV = buffer_CV[: len(positions)]
        out_CV.fill_(0 if self.space == "logits" else -torch.inf)
        weights = self.weights if self.weights.dim() == 1 else self.weights[positions]
        weights = weights.to(out_CV.dtype)
        share_CM = (weights / weights.sum(-1, keepdim=True)).expand(len(positions), -1)
        for member, share_C in zip(self.rows, share_CM.unbind(-1), strict=True):
            seen = share_C.nonzero().squeeze(-1)
            own = member.new_buffer(len(seen))
            for part, logits in finished_tiles(member, positions[seen], own):
                at = seen[part]
                out_CV[at] = self._added(out_CV[at], logits, share_C[at].unsqueeze(-1))
        return out_CV

    def finish_(self, product_RV: Tensor) -> Tensor:
        """Return them as they are."""
        return product_RV

    def _added(self, sum_RV: Tensor, logits_RV: Tensor, share: Tensor) -> Tensor:
        logits_RV = logits_RV.to(sum_RV.dtype)
        if self.space == "logits":
            return sum_RV.addcmul_(logits_RV, share)
        # Sums of probabilities below the smallest number would lose their logarithm.
        return torch.logaddexp(sum_RV, logits_RV.log_softmax(-1).add_(share.log()))
