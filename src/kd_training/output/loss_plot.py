"""The picture of a run's losses."""

import json
from pathlib import Path
from types import ModuleType

_TITLES = {
    "total": "total (weighted)",
    "ce": "cross-entropy with the labels",
    "kd": "divergence from the teacher",
    "ir": "intermediate layers",
    "prompt_kd": "divergence on the prompt",
}


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The records of a ``metrics.jsonl``, one dictionary a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def plot_losses(metrics: Path, picture: Path) -> None:
    """Draw each part of the loss over the steps, training and validation, into a PNG.

    Args:
        metrics: The run's ``metrics.jsonl``.
        picture: Where the PNG goes.
    """
    records = read_metrics(metrics)
    parts = [part for part in _TITLES if any(part in r for r in records)]
    if not parts:
        return
    plt = pyplot()
    figure, axes = plt.subplots(
        1, len(parts), figsize=(4.2 * len(parts), 3.4), squeeze=False, layout="constrained"
    )
    for axis, part in zip(axes[0], parts, strict=True):
        for key, style in ((part, {"lw": 1}), (f"val/{part}", {"marker": "o", "ms": 4})):
            points = [(r["step"], r[key]) for r in records if key in r]
            if points:
                label = "held out" if key.startswith("val/") else "training"
                axis.plot(*zip(*points, strict=True), label=label, **style)
        axis.set(title=_TITLES[part], xlabel="optimizer step", ylabel="nats per token")
        axis.grid(alpha=0.3)
    if "ir" in parts:
        axes[0][parts.index("ir")].set_ylabel("distance per token")
    axes[0][0].legend()
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def pyplot() -> ModuleType:
    """Matplotlib, imported only to draw: a run's start does not wait for it."""
    import matplotlib

    matplotlib.use("Agg")  # no screen is needed
    import matplotlib.pyplot as plt

    return plt
