"""One table of a finished run: lm_eval's results of several models side by side.

python -m kd_analysis.report --run out/quickstart teacher=out/eval/teacher \
    before=out/eval/before after=out/quickstart/eval
"""

import argparse
import json
from pathlib import Path

from kd_analysis.report.eval_results import newest_results, scores
from kd_config.command_line import run_main
from kd_training.output.markdown import markdown_table


def results_table(folders: dict[str, Path]) -> str:
    """A markdown table: a row for each model, a column for each task's metric.

    Raises:
        FileNotFoundError: If a folder has no results of lm_eval.
    """
    rows = {
        name: {f"{score.task} {score.metric}": score.text() for score in scores(report)}
        for name, report in ((n, newest_results(folder)) for n, folder in folders.items())
    }
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = ([name, *(row.get(c, "") for c in columns)] for name, row in rows.items())
    return markdown_table(["model", *columns], cells)


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
