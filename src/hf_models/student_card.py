"""What a student's directory says of where it is from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from hf_models.student_blocks import Choice

ORIGIN_FILE = "init_student.json"
PICTURE = "blocks.png"


def write_origin(
    folder: Path, teacher_dir: str | Path, choice: Choice, depths: Mapping[str, int]
) -> None:
    """Write which blocks were copied, for programs and, as a model card, for people.

    Args:
        folder: The student's directory.
        teacher_dir: The teacher's.
        choice: What was copied.
        depths: Stack → the teacher's number of blocks.

    Raises:
        OSError: If it cannot be written.
    """
    name = Path(teacher_dir).name
    origin = {
        "teacher": name,
        "copied": choice.blocks,
        "chosen_by": choice.chosen_by,
        "scores": choice.scores,
        "depths": depths,
    }
    text = json.dumps(origin, indent=2)
    (folder / ORIGIN_FILE).write_text(text + "\n", encoding="utf-8")
    ModelCard(_card(name, choice)).save(folder / "README.md")


def _card(teacher: str, choice: Choice) -> str:
    data = ModelCardData(library_name="transformers", tags=["knowledge-distillation"])
    parts = [
        f"# A student of {teacher}, before training",
        f"Its blocks are copies of its teacher's, {choice.chosen_by.replace('_', ' ')}; all else "
        "is copied as it is. `layer_mapping: copied` matches each with the one that it was copied "
        "from. It opens like any other model of transformers.",
    ]
    for stack, blocks in choice.blocks.items():
        parts.append(f"## The {stack}\n\n{_table(blocks, choice.scores.get(stack))}")
    if choice.scores:
        parts.append(f"![scores of the blocks]({PICTURE})")
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _table(blocks: list[int], scores: list[float] | None) -> str:
    head = "| block | the teacher's |\n|---:|---:|"
    rows = [f"| {own} | {teacher} |" for own, teacher in enumerate(blocks)]
    if scores is not None:
        head = "| block | the teacher's | score |\n|---:|---:|---:|"
        rows = [
            f"| {own} | {teacher} | {_score(scores, teacher)} |"
            for own, teacher in enumerate(blocks)
        ]
    return "\n".join([head, *rows])


def _score(scores: list[float], block: int) -> str:
    """That of a run belongs to its first block; the last blocks begin none."""
    return f"{scores[block]:.4f}" if block < len(scores) else ""


def read_origin(checkpoint_dir: str | Path) -> dict[str, Any]:
    """What `write_origin` wrote.

    Raises:
        FileNotFoundError: If the directory was not made so.
        ValueError: If the file is damaged.
    """
    path = Path(checkpoint_dir) / ORIGIN_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: not found; only students that kd_init_student has copied know their blocks"
        )
    try:
        origin = json.loads(path.read_text(encoding="utf-8"))
        return {"copied": {str(k): list(v) for k, v in origin["copied"].items()}, **origin}
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise ValueError(f"{path}: damaged: {err}; make the student again") from err


def copied_blocks(checkpoint_dir: str | Path) -> dict[str, list[int]]:
    """Stack → the teacher's blocks that a student's were copied from.

    Raises:
        FileNotFoundError: See `read_origin`.
        ValueError: See `read_origin`.
    """
    copied: dict[str, list[int]] = read_origin(checkpoint_dir)["copied"]
    return copied
