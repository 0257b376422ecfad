"""What to say about a directory or file that is not there."""

from pathlib import Path

# What makes the directories of the documentation, {}, and on the way to what it is made.
_MADE_BY = {
    "SmolLM2-135M-Instruct": ("python -m hf_models.embedded --output {}", "quickstart"),
    "all-MiniLM-L6-v2": (
        "python -m hf_models.embedded --model all-MiniLM-L6-v2 --output {}",
        "quickstart-bert",
    ),
    "movie_snippets": ("python -m kd_data.movie_snippets --output {}", "quickstart-bert"),
    "smollm2-15-layers": (
        "tune run kd_init_student --config configs/init_student.yaml",
        "quickstart",
    ),
    "reference_manual": ("python -m kd_data.reference_manual --output {}", "quickstart"),
}


def missing(path: str | Path, kind: str, remedy: str | None = None) -> str:
    """One line: that there is no such ``kind``, where it was looked for, and what to do."""
    path = Path(path)
    where = "" if path.is_absolute() else f" in {Path.cwd()}"
    if remedy is not None:
        return f"{path}: no such {kind}{where}; {remedy}"
    for folder in (path, *path.parents):
        if folder.name in _MADE_BY:
            command, target = _MADE_BY[folder.name]
            remedy = f"make it by `{command.format(folder)}` or `make {target}`"
            return f"{path}: no such {kind}{where}; {remedy}"
    remedy = "check the path" + (where and ", or start from the folder that it belongs to")
    return f"{path}: no such {kind}{where}; {remedy}"
