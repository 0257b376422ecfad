"""Published results that a run can be compared with; the numbers are in paper_results.yaml."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from hf_models.raw_config import read_raw_config


@dataclass(frozen=True)
class PaperTable:
    """One published table.

    Attributes:
        source: Authors and title.
        url: Where it is, if it is anywhere.
        table: Which of its tables.
        teacher: Fields of the teacher's config.json.
        student: Fields of the student's config.json.
        kd_loss: Class name of the divergence of every row but the teacher's.
        columns: ``task metric``, as ``eval_results.main_scores`` names them.
        rows: Layer matching (or ``teacher``) -> a value for each column, in percent.
    """

    source: str
    url: str | None
    table: str
    teacher: dict[str, Any]
    student: dict[str, Any]
    kd_loss: str
    columns: list[str]
    rows: dict[str, list[float]]


@cache
def paper_tables() -> tuple[PaperTable, ...]:
    """All of them."""
    text = (files("kd_analysis.report") / "paper_results.yaml").read_text(encoding="utf-8")
    return tuple(PaperTable(**table) for table in yaml.safe_load(text))


def paper_table(teacher: Path | None, student: Path | None) -> PaperTable | None:
    """The table about models of the sizes of these two directories."""
    for table in paper_tables():
        if _is(teacher, table.teacher) and _is(student, table.student):
            return table
    return None


def _is(directory: Path | None, fields: dict[str, Any]) -> bool:
    if directory is None:
        return False
    try:
        config = read_raw_config(directory)
    except (OSError, ValueError):
        return False
    return all(config.get(key) == value for key, value in fields.items())
