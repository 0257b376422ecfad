"""All finished runs below a folder side by side, beside teacher, student before, and the papers.

python -m kd_analysis.report.compare out

reads each run's config.yaml and lm_eval's results (``lm_eval --output_path MODEL/eval``), writes
report.md and report.png into the folder, and prints the report.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from kd_analysis.report.compare_plot import plot_group
from kd_analysis.report.compare_table import group_table, shown
from kd_analysis.report.paper_results import PaperTable, paper_table
from kd_analysis.report.runs import Group, find_groups


def write_report(roots: Sequence[Path], output: Path) -> Path:
    """Write ``report.md``, and a picture for each pair of teacher and student.

    Args:
        roots: Folders with finished runs, and perhaps with lm_eval's results.
        output: Folder to write into.

    Returns:
        The report's path.

    Raises:
        ValueError: If there is no finished run below ``roots``, or a file cannot be read.
        OSError: If the report cannot be written.
    """
    groups = find_groups(roots)
    output.mkdir(parents=True, exist_ok=True)
    paragraphs = ["# Distilled students"]
    for number, group in enumerate(groups, start=1):
        picture = output / ("report.png" if number == 1 else f"report_{number}.png")
        paragraphs += _section(group, picture)
    report = output / "report.md"
    report.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
    return report


def _section(group: Group, picture: Path) -> list[str]:
    names = [path.name if path is not None else "none" for path in (group.teacher, group.student)]
    title = f"Teacher {names[0]}, student {names[1]}"
    paragraphs = [f"## {title}"]
    if group.columns:
        paper = paper_table(group.teacher, group.student)
        plot_group(group, paper, picture)
        paragraphs += [group_table(group, paper), _caption(group, paper)]
        paragraphs.append(f"![{title}]({picture.name})")
    if group.not_evaluated:
        commands = (
            f"lm_eval --model hf --model_args pretrained={shown(model)} "
            f"--tasks {','.join(_tasks(group)) or 'hellaswag'} --output_path {shown(model)}/eval"
            for model in group.not_evaluated
        )
        paragraphs.append("Not evaluated yet:\n\n```bash\n" + "\n".join(commands) + "\n```")
    return paragraphs


def _tasks(group: Group) -> list[str]:
    return list(dict.fromkeys(s.task for row in group.rows for s in row.scores.values()))


def _caption(group: Group, paper: PaperTable | None) -> str:
    caption = "Scores are lm_eval's, with standard errors; rates are in percent."
    if paper is None or not set(paper.columns) & set(group.columns):
        return caption
    source = f"[{paper.source}]({paper.url})" if paper.url else paper.source
    return (
        f"{caption} Published: {source}: {paper.table}. Its models have the same sizes; "
        "data, schedule and teacher tuning may differ."
    )


def main() -> None:
    """Write the report and print it."""
    parser = argparse.ArgumentParser(
        prog="kd_analysis.report.compare", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folders", type=Path, nargs="+", help="folders with finished runs")
    parser.add_argument("--output", type=Path, help="where the report goes; default: first folder")
    arguments = parser.parse_args()
    report = write_report(arguments.folders, arguments.output or arguments.folders[0])
    print(report.read_text(encoding="utf-8"))
    print(f"report: {report}")


if __name__ == "__main__":
    # Here and not above: the training loop imports this room, which must not import it.
    from kd_config.command_line import run_main

    run_main(main)
