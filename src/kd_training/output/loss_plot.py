"""The picture of a run's losses."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple


class Panel(NamedTuple):
    """One curve's place.

    Attributes:
        name: Its key in the records.
        title: Above it.
        unit: Beside it.
    """

    name: str
    title: str
    unit: str


TOTAL = Panel("total", "total (weighted)", "nats per token")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The records of a ``metrics.jsonl``, one dictionary a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def plot_losses(metrics: Path, picture: Path, panels: Sequence[Panel]) -> None:
    """Draw the total and each part over the steps, training and validation, into a PNG.

    Args:
        metrics: The run's ``metrics.jsonl``.
        picture: Where the PNG goes.
        panels: The parts.
    """
    records = read_metrics(metrics)
    drawn = [panel for panel in (TOTAL, *panels) if any(panel.name in r for r in records)]
    if not drawn:
        return
    plt = pyplot()
    figure, axes = plt.subplots(
        1, len(drawn), figsize=(4.2 * len(drawn), 3.4), squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes[0], drawn, strict=True):
        for key, style in (
            (panel.name, {"lw": 1}),
            (f"val/{panel.name}", {"marker": "o", "ms": 4}),
        ):
            points = [(r["step"], r[key]) for r in records if key in r]
            if points:
                label = "held out" if key.startswith("val/") else "training"
                axis.plot(*zip(*points, strict=True), label=label, **style)
        axis.set(title=panel.title, xlabel="optimizer step", ylabel=panel.unit)
        axis.grid(alpha=0.3)
    axes[0][0].legend()
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def pyplot() -> ModuleType:
    """Matplotlib, imported only to draw: a run's start does not wait for it."""
    import matplotlib

    matplotlib.use("Agg")  # no screen is needed
    import matplotlib.pyplot as plt

    return plt
