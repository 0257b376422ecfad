"""lm_eval's result files: which model, which scores."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Metrics between 0 and 1 that papers print in percent.
_RATES = {"acc", "acc_norm", "acc_bytes", "exact_match", "em", "f1", "accuracy"}


@dataclass(frozen=True)
class Score:
    """One metric of one task.

    Attributes:
        task: lm_eval's name of the task.
        metric: Name of the metric, and its filter where it has one.
        value: As lm_eval gives it.
        error: Standard error, if lm_eval gives one.
    """

    task: str
    metric: str
    value: float
    error: float | None = None

    @property
    def is_rate(self) -> bool:
        """Whether it is a share between 0 and 1 that better models have more of."""
        return self.metric.partition(" ")[0] in _RATES

    def text(self, percent: bool = False) -> str:
        """``0.517 ± 0.065``, or ``51.72 ± 6.50`` in percent."""
        scale, digits = (100, 2) if percent else (1, 3)
        value = self.value * scale
        cell = f"{value:,.{digits}f}" if abs(value) < 1e4 else f"{value:.2e}"
        return cell if self.error is None else f"{cell} ± {self.error * scale:.{digits}f}"


def result_files(folder: Path) -> list[Path]:
    """lm_eval's result files below ``folder``, oldest first (their names hold the time)."""
    return sorted(folder.rglob("results_*.json"), key=lambda path: (path.name, path))


def read_results(path: Path) -> dict[str, Any]:
    """One result file.

    Raises:
        ValueError: If it is none.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        report["results"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise ValueError(f"{path}: not a result file of lm_eval ({err}); move it away") from err
    return report


def newest_results(folder: Path) -> dict[str, Any]:
    """lm_eval's newest result file below ``folder``.

    Raises:
        FileNotFoundError: If lm_eval wrote none there.
        ValueError: If it cannot be read.
    """
    files = result_files(folder)
    if not files:
        raise FileNotFoundError(f"{folder}: no lm_eval results; run lm_eval with --output_path")
    return read_results(files[-1])


def scores(report: Mapping[str, Any]) -> list[Score]:
    """Every metric of every task, in lm_eval's order."""
    found = []
    for task, metrics in report["results"].items():
        for key, value in metrics.items():
            metric, _, rest = key.partition(",")
            if not isinstance(value, int | float) or not rest or metric.endswith("_stderr"):
                continue
            error = metrics.get(f"{metric}_stderr,{rest}")
            name = metric if rest == "none" else f"{metric} ({rest})"
            found.append(Score(task, name, value, error if _is_number(error) else None))
    return found


def main_scores(report: Mapping[str, Any]) -> dict[str, Score]:
    """The first metric of each task (a group counts as one), by a name that tells its conditions.

    ``hellaswag acc``, ``hellaswag acc, 10-shot``, ``hellaswag acc, limit 50``: scores under the
    same name can be compared.
    """
    every = scores(report)
    scored = {score.task for score in every}
    groups = report.get("group_subtasks") or {}
    inside = {task for group, tasks in groups.items() if group in scored for task in tasks}
    limit = (report.get("config") or {}).get("limit")
    chosen: dict[str, Score] = {}
    for score in every:
        if score.task in inside or score.task not in scored:
            continue
        scored.remove(score.task)
        shots = (report.get("n-shot") or {}).get(score.task)
        name = f"{score.task} {score.metric}" + (f", {shots}-shot" if shots else "")
        chosen[name + (f", limit {limit:g}" if limit else "")] = score
    return chosen


def evaluated_model(path: Path, report: Mapping[str, Any]) -> Path | None:
    """The directory of the model that a result file is about.

    That is the model directory which the file lies in, wherever it was moved to, else the one that
    lm_eval was given; None if it was given none.
    """
    for folder in path.absolute().parents:
        if (folder / "config.json").is_file():
            return folder
    arguments = (report.get("config") or {}).get("model_args") or {}
    if isinstance(arguments, str):
        arguments = dict(re.findall(r"([^=,]+)=([^,]*)", arguments))
    pretrained = arguments.get("pretrained")
    return Path(pretrained).absolute() if pretrained else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
