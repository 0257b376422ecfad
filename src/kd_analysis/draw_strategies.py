"""The README's picture of the strategies, for 3 student and 12 teacher layers.

python -m kd_analysis.draw_strategies docs/strategies.png
"""

import sys
from pathlib import Path

import layer_mapping
from kd_training.output.loss_plot import pyplot

_DEPTHS = (3, 12)


def plot_mappings(
    mappings: dict[str, list[tuple[int, int]]],
    num_student_layers: int,
    num_teacher_layers: int,
    picture: Path,
) -> None:
    """Draw which student layer meets which teacher layer, one panel a mapping, into a PNG.

    Args:
        mappings: Title of the panel -> pairs of (student, teacher) layers.
        num_student_layers: Depth of the student.
        num_teacher_layers: Depth of the teacher.
        picture: Where the PNG goes.
    """
    plt = pyplot()
    figure, axes = plt.subplots(
        1, len(mappings), figsize=(1.7 * len(mappings), 3), sharey=True, layout="constrained"
    )
    stretch = (num_teacher_layers - 1) / max(num_student_layers - 1, 1)
    for axis, (title, pairs) in zip(axes, mappings.items(), strict=True):
        axis.plot([1] * num_teacher_layers, range(num_teacher_layers), "s", color="0.75")
        axis.plot([0] * num_student_layers, [s * stretch for s in range(num_student_layers)], "o")
        for student, teacher in pairs:
            axis.plot([0, 1], [student * stretch, teacher], color="tab:red", lw=1)
            axis.annotate(str(teacher), (1.12, teacher), va="center", fontsize=8)
        axis.set(title=title, xlim=(-0.3, 1.5), xticks=[0, 1], yticks=[])
        axis.set_xticklabels(["student", "teacher"], fontsize=8)
        axis.set_frame_on(False)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def main(picture: Path) -> None:
    """Draw it into ``picture``."""
    mappings = {
        "forward": layer_mapping.forward(*_DEPTHS),
        "reverse": layer_mapping.reverse(*_DEPTHS),
        "all_to_one": layer_mapping.all_to_one(*_DEPTHS),
        "random, seed 1": layer_mapping.random(*_DEPTHS, seed=1),
        "in_order_random": layer_mapping.in_order_random(*_DEPTHS, epoch=1),
        "last": layer_mapping.last(*_DEPTHS),
    }
    plot_mappings(mappings, *_DEPTHS, picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
