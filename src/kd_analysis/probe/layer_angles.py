"""Angles between a teacher's layers: why the matching strategy matters so little.

A student layer s that learns from teacher layer i is pulled along t_i - s. Where the angle between
t_i - s and t_j - s is acute, learning from layer j pulls to the same side.

Shapes: N tokens, L teacher layers, D width.

Source: Yu, Wen, Mou, "Revisiting Intermediate-Layer Matching in Knowledge Distillation:
Layer-Selection Strategy Doesn't Matter (Much)", https://arxiv.org/abs/2502.04499.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen is needed
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor

# A point this much nearer to the origin than it is long has no direction from there.
_SAME = 1e-4
_NUM_BINS = 90


class Angles:
    """Angles in degrees between every two of L points seen from an origin, over many tokens.

    angle(i, j) = arccos((p_i - o)·(p_j - o) / (|p_i - o|·|p_j - o|)). A token where p_i or p_j lies
    on the origin does not count for that pair, as in a layer that the student copied unchanged.

    Args:
        num_layers: L.
        device: Where the points are.
    """

    def __init__(self, num_layers: int, device: torch.device | str = "cpu") -> None:
        shape = (num_layers, num_layers)
        self._sums = torch.zeros(shape, dtype=torch.float64, device=device)
        self._counts = torch.zeros(shape, dtype=torch.float64, device=device)
        self._histogram = torch.zeros(_NUM_BINS, device=device, dtype=torch.float64)
        self._pairs = torch.ones(shape, dtype=torch.bool, device=device).triu(1)

    def update(self, points_NLD: Tensor, origin_ND: Tensor | None = None) -> None:
        """Count N more tokens; without an origin the angles are those at 0."""
        points_NLD = points_NLD.float()
        vectors = points_NLD if origin_ND is None else points_NLD - origin_ND.float()[:, None]
        length_NL = vectors.norm(dim=-1)
        apart_NL = length_NL > _SAME * points_NLD.norm(dim=-1)
        unit = F.normalize(vectors, dim=-1)
        angles_NLL = (unit @ unit.mT).clamp(-1, 1).acos().rad2deg()
        valid_NLL = apart_NL[:, :, None] & apart_NL[:, None, :]
        self._sums += angles_NLL.masked_fill(~valid_NLL, 0).sum(0, dtype=torch.float64)
        self._counts += valid_NLL.sum(0)
        chosen = angles_NLL[valid_NLL & self._pairs]
        self._histogram += torch.histc(chosen, _NUM_BINS, 0, 180)

    def mean(self) -> Tensor:
        """Mean angle of each pair [L, L] in degrees; NaN where no token counts."""
        return (self._sums / self._counts).fill_diagonal_(0).cpu()

    def histogram(self) -> Tensor:
        """Share of all angles of pairs i < j in each bin of 2 degrees [90]."""
        return (self._histogram / self._histogram.sum().clamp(min=1)).cpu()

    def acute_share(self) -> float:
        """Share of all angles of pairs i < j below 90 degrees."""
        return self.histogram()[: _NUM_BINS // 2].sum().item()

    def overall_mean(self) -> float:
        """Mean of all angles of pairs i < j in degrees; NaN where none counts."""
        return (self._sums[self._pairs].sum() / self._counts[self._pairs].sum()).item()


def summary(teacher: Angles, students: Mapping[str, list[Angles]]) -> dict[str, Any]:
    """What goes into the JSON: plain numbers, angles in degrees."""
    return {
        "unit": "degrees",
        "between_teacher_layers": {
            "mean": teacher.overall_mean(),
            "pairs": [[round(v, 3) for v in row] for row in teacher.mean().tolist()],
        },
        "from_student_layers": {
            name: {
                "mean": [angles.overall_mean() for angles in layers],
                "acute_share": [angles.acute_share() for angles in layers],
            }
            for name, layers in students.items()
        },
    }


def plot(teacher: Angles, students: Mapping[str, list[Angles]], picture: Path) -> None:
    """Draw the teacher's own angles, and those seen from every layer of each student, into a PNG.

    Args:
        teacher: Angles at 0.
        students: Name -> angles seen from each of its layers; empty where the widths differ.
        picture: Where the PNG goes.
    """
    columns = 3 if students else 1
    figure, axes = plt.subplots(
        1, columns, figsize=(4.8 * columns, 4), squeeze=False, layout="constrained"
    )
    image = axes[0][0].imshow(
        teacher.mean().numpy(), cmap="viridis_r", vmin=0, vmax=90, origin="lower"
    )
    axes[0][0].set(
        title="between two teacher layers, seen from 0", xlabel="teacher layer",
        ylabel="teacher layer",
    )  # fmt: skip
    figure.colorbar(image, ax=axes[0][0], label="mean angle in degrees", extend="max")
    if students:
        _plot_layers(axes[0][1], students)
        _plot_histogram(axes[0][2], students)
    for axis in axes[0]:
        axis.title.set_fontsize(10)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def _plot_layers(axis: Axes, students: Mapping[str, list[Angles]]) -> None:
    for name, layers in students.items():
        axis.plot([angles.overall_mean() for angles in layers], "o-", ms=4, label=name)
    axis.axhline(90, color="0.5", ls="--")
    axis.set(
        title="between two teacher layers, seen from a student layer", xlabel="student layer",
        ylabel="mean angle in degrees", ylim=(0, 120),
    )  # fmt: skip
    axis.grid(alpha=0.3)
    axis.legend(title="student")


def _plot_histogram(axis: Axes, students: Mapping[str, list[Angles]]) -> None:
    edges = torch.linspace(0, 180, _NUM_BINS + 1).numpy()
    for name, layers in students.items():
        share = torch.stack([angles.histogram() for angles in layers]).mean(0).numpy()
        acute = sum(angles.acute_share() for angles in layers) / len(layers)
        axis.stairs(100 * share, edges, label=f"{name}: {acute:.1%} acute", lw=1.5)
    axis.axvline(90, color="0.5", ls="--")
    axis.set(
        title="the same for all student layers, pairs and tokens", xlabel="angle in degrees",
        ylabel="% of angles per 2 degrees", xticks=range(0, 181, 30),
    )  # fmt: skip
    axis.grid(alpha=0.3)
    axis.legend()
