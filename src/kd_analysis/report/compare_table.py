"""A group of runs as a markdown table in the layout of the papers: methods by tasks."""

import os
from collections.abc import Iterable
from pathlib import Path

from kd_analysis.report.paper_results import PaperTable
from kd_analysis.report.runs import TEACHER, Group, Row
from kd_training.output.markdown import markdown_table

_TEXTS = ["layer matching", "objective", "model"]


def group_table(group: Group, paper: PaperTable | None = None) -> str:
    """Methods by tasks: rates in percent, their mean, and published values beside ours.

    A published row that no model of the group corresponds to gets a row of its own.
    """
    columns = group.columns
    rates = [c for c in columns if any(r.scores[c].is_rate for r in group.rows if c in r.scores)]
    published = [c for c in columns if paper is not None and c in paper.columns]
    rows = [_ours(row, rates) | _published(paper, published_row(paper, row)) for row in group.rows]
    if paper is not None:
        ran = {published_row(paper, row) for row in group.rows}
        rows += [
            {"layer matching": name, "model": "published only"} | _published(paper, name)
            for name in paper.rows
            if name not in ran and published
        ]
    head = list(_TEXTS)
    for column in columns:
        head += [column, _beside(column)] if column in published else [column]
    if len(rates) > 1:
        head.append("mean")
    cells = ([row.get(name, "") for name in head] for row in rows)
    return markdown_table(head, cells, texts=len(_TEXTS))


def published_row(paper: PaperTable | None, row: Row) -> str | None:
    """The name of the paper's row that corresponds to ``row``, if one does."""
    method = row.method.partition("(")[0]
    if paper is None or method not in paper.rows:
        return None
    return method if method == TEACHER or row.kd_loss == paper.kd_loss else None


def shown(path: Path) -> str:
    """The path from the current folder, if it is below."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _beside(column: str) -> str:
    return f"{column}, published"


def _ours(row: Row, rates: Iterable[str]) -> dict[str, str]:
    cells = {"layer matching": row.method, "objective": row.objective, "model": shown(row.model)}
    cells |= {column: s.text(percent=s.is_rate) for column, s in row.scores.items()}
    values = [row.scores[column].value for column in rates if column in row.scores]
    # A mean over fewer tasks than the other rows' would say something else.
    if values and len(values) == len(list(rates)):
        cells["mean"] = f"{100 * sum(values) / len(values):.2f}"
    return cells


def _published(paper: PaperTable | None, name: str | None) -> dict[str, str]:
    if paper is None or name is None:
        return {}
    values = zip(paper.columns, paper.rows[name], strict=True)
    return {_beside(column): f"{value:.2f}" for column, value in values}
