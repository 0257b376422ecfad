"""One table of a finished run: lm_eval's results of several models side by side.

python -m kd_analysis.report --run out/quickstart teacher=out/eval/teacher \
    before=out/eval/before after=out/quickstart/eval
"""

import argparse
import json
from pathlib import Path
from typing import Any

from kd_training import run_main


def newest_results(folder: Path) -> dict[str, dict[str, Any]]:
    """lm_eval's newest results below ``folder``: task -> metric -> value.

    Raises:
        FileNotFoundError: If lm_eval wrote none there.
    """
    files = sorted(folder.rglob("results_*.json"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"{folder}: no lm_eval results; run lm_eval with --output_path")
    return json.loads(files[-1].read_text(encoding="utf-8"))["results"]


def results_table(folders: dict[str, Path]) -> str:
    """A markdown table: a row for each model, a column for each task's metric."""
    rows = {name: _metrics(newest_results(folder)) for name, folder in folders.items()}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = ["| model | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(row.get(c, "") for c in columns) + " |")
    return "\n".join(lines)


def _metrics(results: dict[str, dict[str, Any]]) -> dict[str, str]:
    """``task metric`` -> value with its standard error, as far as lm_eval gives one."""
    cells = {}
    for task, metrics in results.items():
        for key, value in metrics.items():
            metric, _, rest = key.partition(",")
            if not isinstance(value, int | float) or not rest or metric.endswith("_stderr"):
                continue
            error = metrics.get(f"{metric}_stderr,{rest}")
            cell = f"{value:,.3f}" if abs(value) < 1e4 else f"{value:.2e}"
            cells[f"{task} {metric}"] = cell + (
                f" ± {error:.3f}" if isinstance(error, int | float) else ""
            )
    return cells


def _folder(argument: str) -> tuple[str, Path]:
    name, _, folder = argument.partition("=")
    if not folder:
        raise argparse.ArgumentTypeError(f"{argument!r} is not of the form name=folder")
    return name.replace("_", " "), Path(folder)


def main() -> None:
    """Print the table, the run's speed and memory, and where its picture is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="the run's output_dir")
    parser.add_argument("folders", type=_folder, nargs="+", metavar="name=folder")
    arguments = parser.parse_args()
    summary = json.loads((arguments.run / "logs" / "summary.json").read_text(encoding="utf-8"))
    print()
    print(results_table(dict(arguments.folders)))
    print(
        f"\ntrained {summary['steps']} steps, {summary['label_tokens']:,.0f} tokens: "
        f"{summary['tokens_per_second']:.0f} tokens/s, "
        f"peak memory {summary['peak_memory_gib']:.1f} GiB"
    )
    print(f"loss curves: {arguments.run / 'logs' / 'loss.png'}")


if __name__ == "__main__":
    run_main(main)
