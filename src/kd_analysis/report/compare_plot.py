"""A picture of a group of runs: one panel a task, one line a model."""

from collections import Counter
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen is needed
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from kd_analysis.report.compare_table import published_row, shown
from kd_analysis.report.paper_results import PaperTable
from kd_analysis.report.runs import BEFORE, TEACHER, Group, Row

_LINES = {TEACHER: ("tab:green", "--"), BEFORE: ("0.5", ":")}
_MAX_PANELS = 8


def plot_group(group: Group, paper: PaperTable | None, picture: Path) -> None:
    """Draw every run's scores with their standard errors into a PNG.

    Teacher and student before are vertical lines, published values hollow diamonds. Of more than
    eight tasks the first eight are drawn.
    """
    columns = group.columns[:_MAX_PANELS]
    runs = [row for row in group.rows if row.method not in _LINES]
    names = _names(runs)
    size = (1.5 + 3 * len(columns), 1.6 + 0.35 * max(len(runs), 3))
    figure, axes = plt.subplots(
        1, len(columns), figsize=size, squeeze=False, sharey=True, layout="constrained"
    )
    for axis, column in zip(axes[0], columns, strict=True):
        _panel(axis, column, group, runs, paper)
    axes[0][0].set_yticks(range(len(runs)), names)
    axes[0][0].set_ylim(max(len(runs), 1) - 0.5, -0.6)
    handles, labels = axes[0][0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=4)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def _panel(
    axis: Axes, column: str, group: Group, runs: list[Row], paper: PaperTable | None
) -> None:
    scale, unit = 1, ""
    for row in group.rows:
        if column not in row.scores:
            continue
        score = row.scores[column]
        scale, unit = (100, " (%)") if score.is_rate else (1, "")
        value, error = score.value * scale, (score.error or 0) * scale
        if row.method in _LINES:
            color, style = _LINES[row.method]
            axis.axvline(value, color=color, ls=style, label=row.method)
        else:
            axis.errorbar(value, runs.index(row), xerr=error, fmt="o", color="tab:blue", capsize=3,
                          label="student after")  # fmt: skip
            text = score.text(percent=score.is_rate).partition(" ")[0]
            axis.annotate(text, (value, runs.index(row)), (0, 6), textcoords="offset points",
                          ha="center", fontsize=8)  # fmt: skip
    for y, row in enumerate(runs):
        name = published_row(paper, row)
        if paper is not None and name is not None and column in paper.columns:
            value = paper.rows[name][paper.columns.index(column)]
            axis.plot(value, y, "D", mfc="none", color="tab:red", label="published")
    axis.set_title(column + unit, fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    values = [row.scores[column].value for row in group.rows if column in row.scores]
    if scale == 1 and max(values) > 20 * min(values) > 0:
        axis.set_xscale("log")  # perplexities


def _names(runs: list[Row]) -> list[str]:
    """The layer matching, with as much more as tells the runs apart."""
    methods = Counter(row.method for row in runs)
    both = Counter((row.method, row.objective) for row in runs)
    names = []
    for row in runs:
        name = row.method if methods[row.method] == 1 else f"{row.method}; {row.objective}"
        if both[row.method, row.objective] > 1:
            name = f"{row.method}; {shown(row.model)}"
        names.append(name)
    return names
