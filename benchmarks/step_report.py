"""Tables and pictures of whole steps."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from step_clock import PHASES
from step_floor import floor_speed
from step_job import Row

BASE = "torchtune"
GB = 1e9


def speed(row: Row) -> float:
    """Median label tokens per second."""
    return median(row.speeds)


def table(rows: Sequence[Row], floor: dict[str, Any] | None) -> str:
    """Return a markdown table: speed, memory, both beside torchtune's, and the floor's share."""
    base = next((row for row in rows if row.job.system == BASE and not row.reason), None)
    columns = [
        "label tokens/s",
        "slowest to fastest step",
        "of the floor",
        "× torchtune",
        "peak GB",
        "× torchtune",
        "first step",
        "GFLOP/s before, after",
    ]
    lines = [f"| system | {' | '.join(columns)} | |", "|---|" + "--:|" * len(columns) + "---|"]
    for row in rows:
        if row.reason:
            cells = [f"not measured: {row.reason}", *[""] * len(columns)]
        else:
            cells = [*_numbers(row, base, floor), _remark(row)]
        lines.append(f"| {row.job.system} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _numbers(row: Row, base: Row | None, floor: dict[str, Any] | None) -> list[str]:
    times = size = share = ""
    if base is not None:
        times = f"{speed(row) / speed(base):.2f}"
        size = f"{row.peak_bytes / base.peak_bytes:.2f}"
    if floor is not None:
        share = f"{speed(row) / floor_speed(floor, row.job.system):.0%}"
    return [
        f"{speed(row):.0f}",
        f"{min(row.speeds):.0f} to {max(row.speeds):.0f}",
        share,
        times,
        f"{row.peak_bytes / GB:.2f}",
        size,
        ", ".join(f"{name} {value:.5g}" for name, value in row.first.items()),
        ", ".join(f"{value:.0f}" for value in row.gflops),
    ]


def _remark(row: Row) -> str:
    parts = [row.note] if row.note else []
    if row.cache_bytes:
        parts.append(f"cache: {row.cache_bytes / 1e6:.0f} MB, made in {row.cache_seconds:.0f} s")
    return "; ".join(parts)


def phase_table(rows: Sequence[Row]) -> str:
    """Return a markdown table: seconds by phase, for 1000 label tokens of the profiled steps."""
    measured = [row for row in rows if row.phases]
    lines = [
        "| system | " + " | ".join(PHASES) + " | sum |",
        "|---|" + "--:|" * (len(PHASES) + 1),
    ]
    for row in measured:
        per_thousand = 1000 / row.profiled_labels
        cells = [f"{row.phases[name] * per_thousand:.3f}" for name in PHASES]
        whole = sum(row.phases.values()) * per_thousand
        lines.append(f"| {row.job.system} | {' | '.join(cells)} | {whole:.3f} |")
    return "\n".join(lines)


def floor_table(floor: dict[str, Any]) -> str:
    """Return a markdown table: the matrix products of a step."""
    lines = ["| part | GFLOP | seconds at best |", "|---|--:|--:|"]
    for name, gflop in floor["gflop"].items():
        lines.append(f"| {name} | {gflop:.1f} | {floor['seconds'][name]:.3f} |")
    lines.append(
        f"| all, {floor['labels']} label tokens | {sum(floor['gflop'].values()):.1f} "
        f"| {sum(floor['seconds'].values()):.3f} |"
    )
    return "\n".join(lines)


def picture(title: str, rows: Sequence[Row], floor: dict[str, Any] | None, path: Path) -> None:
    """Draw speed, with each floor marked, and peak memory of every measured row."""
    measured = [row for row in rows if not row.reason]
    names = [row.job.system for row in measured]
    colours = ["tab:blue" if name.startswith("ours") else "tab:gray" for name in names]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 0.45 * len(names) + 1.6), sharey=True)
    bars = left.barh(names, [speed(row) for row in measured], color=colours)
    left.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    if floor is not None:
        floors = [floor_speed(floor, name) for name in names]
        left.plot(floors, names, "|", color="black", markersize=16)
        left.set_xlim(right=1.1 * max(floors))
    marks = "" if floor is None else "; black marks: its matrix products alone"
    left.set_xlabel(f"label tokens per second{marks}")
    bars = right.barh(names, [row.peak_bytes / GB for row in measured], color=colours)
    right.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    right.set_xlabel("peak memory of the process, GB")
    right.margins(x=0.12)
    left.invert_yaxis()
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
