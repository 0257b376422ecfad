"""How far student and teacher agree on the likeliest next tokens.

overlap@k = |top-k(teacher) ∩ top-k(student)| / k, averaged over tokens; overlap@1 is the agreement
on the likeliest token.

Shapes: N tokens, V vocabulary, K the largest k.

Source: Li, Zhou, Song, "BiLD: Bi-directional Logits Difference Loss for Large Language Model
Distillation", COLING 2025, https://aclanthology.org/2025.coling-main.78.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen is needed
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

KS = (1, 2, 4, 8, 16, 32, 64, 128)
_NUM_BINS = 10


class Overlap:
    """Overlap of the top-k tokens, and agreement on the first by the teacher's confidence.

    Args:
        ks: Values of k.
    """

    def __init__(self, ks: Sequence[int] = KS) -> None:
        self.ks = list(ks)
        self.num_tokens = 0
        self._overlap = torch.zeros(len(self.ks), dtype=torch.float64)
        self._agree = torch.zeros(_NUM_BINS, dtype=torch.float64)
        self._tokens = torch.zeros(_NUM_BINS, dtype=torch.float64)

    def update(self, student_NV: Tensor, teacher_NV: Tensor) -> None:
        """Count N more tokens.

        Raises:
            ValueError: If the vocabularies differ, or are smaller than the largest k.
        """
        if student_NV.shape != teacher_NV.shape or max(self.ks) > student_NV.shape[-1]:
            raise ValueError(
                f"logits of shape {list(student_NV.shape)} and {list(teacher_NV.shape)} cannot be "
                f"compared at k = {max(self.ks)}"
            )
        student_NK, teacher_NK = (
            logits.topk(max(self.ks), dim=-1).indices for logits in (student_NV, teacher_NV)
        )
        same_NKK = student_NK[:, :, None] == teacher_NK[:, None, :]
        common = [same_NKK[:, :k, :k].sum().item() / k for k in self.ks]
        self._overlap += torch.tensor(common, dtype=torch.float64)
        confidence_N = teacher_NV.float().softmax(-1).amax(-1)
        bins_N = (confidence_N * _NUM_BINS).long().clamp(max=_NUM_BINS - 1).cpu()
        self._agree.index_add_(0, bins_N, same_NKK[:, 0, 0].double().cpu())
        self._tokens += torch.bincount(bins_N, minlength=_NUM_BINS)
        self.num_tokens += len(bins_N)

    def overlap(self) -> dict[int, float]:
        """k -> mean overlap."""
        means = (self._overlap / self.num_tokens).tolist()
        return dict(zip(self.ks, means, strict=True))

    def agreement(self) -> list[float | None]:
        """Top-1 agreement for each tenth of the teacher's top probability; None without tokens."""
        pairs = zip(self._agree.tolist(), self._tokens.tolist(), strict=True)
        return [agree / tokens if tokens else None for agree, tokens in pairs]

    def confidence(self) -> list[float]:
        """Share of tokens in each tenth of the teacher's top probability."""
        return (self._tokens / self.num_tokens).tolist()


def summary(students: Mapping[str, Overlap]) -> dict[str, Any]:
    """What goes into the JSON."""
    return {
        name: {
            "overlap_at_k": one.overlap(),
            "top1_agreement_by_teacher_confidence": one.agreement(),
            "tokens_by_teacher_confidence": one.confidence(),
        }
        for name, one in students.items()
    }


def plot(students: Mapping[str, Overlap], picture: Path) -> None:
    """Draw overlap over k, and top-1 agreement over the teacher's confidence, into a PNG."""
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4), layout="constrained")
    for name, one in students.items():
        values = one.overlap()
        axes[0].plot(list(values), [100 * v for v in values.values()], "o-", ms=4, label=name)
    axes[0].set_xscale("log", base=2)
    axes[0].set_xticks(one.ks, [str(k) for k in one.ks])
    axes[0].set(
        title="top-k tokens shared with the teacher", xlabel="k", ylabel="overlap in %",
        ylim=(0, 100),
    )  # fmt: skip
    axes[0].grid(alpha=0.3)
    axes[0].legend(title="student")
    _plot_confidence(axes[1], students)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def _plot_confidence(axis: Axes, students: Mapping[str, Overlap]) -> None:
    centers = [(i + 0.5) / _NUM_BINS for i in range(_NUM_BINS)]
    for name, one in students.items():
        points = zip(centers, one.agreement(), strict=True)
        known = [(x, 100 * y) for x, y in points if y is not None]
        axis.plot(*zip(*known, strict=True), "o-", ms=4, label=name)
    share = [100 * s for s in one.confidence()]
    axis.bar(centers, share, width=0.9 / _NUM_BINS, color="0.85", zorder=0, label="share of tokens")
    axis.set(
        title="agreement on the likeliest token", xlabel="teacher's probability of its likeliest",
        ylabel="%", xlim=(0, 1), ylim=(0, 100),
    )  # fmt: skip
    axis.grid(alpha=0.3)
    axis.legend()
