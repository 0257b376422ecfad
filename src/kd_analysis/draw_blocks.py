"""Which of a teacher's blocks a student was given, and what they were chosen by."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from hf_models.block_scores import BLOCK_INFLUENCE
from hf_models.student_card import PICTURE, read_origin

_COPIED, _LEFT_OUT = "#1f6fb4", "#c9c9c9"
_AXES = {
    BLOCK_INFLUENCE: "influence: 1 − cos(input, output)",
    "angular_distance": "angle over the run that begins here / π",
}


def draw_blocks(checkpoint_dir: str | Path) -> Path:
    """Draw the scores of a student's origin into its directory, a bar for each teacher's block.

    Raises:
        FileNotFoundError: If the directory does not say where it is from.
        OSError: If the picture cannot be written.
    """
    origin = read_origin(checkpoint_dir)
    scores = origin["scores"]
    figure, axes = plt.subplots(
        len(scores), 1, figsize=(9, 3.2 * len(scores)), squeeze=False, layout="constrained"
    )
    for axis, (stack, values) in zip(axes[:, 0], scores.items(), strict=True):
        copied = set(origin["copied"][stack])
        colours = [_COPIED if block in copied else _LEFT_OUT for block in range(len(values))]
        axis.bar(range(len(values)), values, color=colours)
        axis.set_xlabel(f"block of the {stack} of {origin['teacher']}")
        axis.set_ylabel(_AXES[origin["chosen_by"]], fontsize=9)
        if min(values) > 0:  # the least of them are what matters
            axis.set_yscale("log")
        depth = origin["depths"][stack]
        axis.set_xticks(range(0, depth, 1 if depth <= 32 else 4))
        axis.set_xlim(-1, depth)
        axis.set_title("which blocks are copied, and what they were chosen by", fontsize=10, pad=14)
        _mark_blocks(axis, copied, depth)
        handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in (_COPIED, _LEFT_OUT)]
        axis.legend(
            handles, [f"copied ({len(copied)})", "left out"], frameon=False, loc="upper center"
        )
        axis.spines[["top", "right"]].set_visible(False)
    path = Path(checkpoint_dir) / PICTURE
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _mark_blocks(axis: Any, copied: set[int], depth: int) -> None:
    """A square for each block above the bars: the last ones begin no run, so have none."""
    colours = [_COPIED if block in copied else _LEFT_OUT for block in range(depth)]
    heights = [1.03] * depth
    place = axis.get_xaxis_transform()
    axis.scatter(range(depth), heights, c=colours, marker="s", s=24, transform=place, clip_on=False)
