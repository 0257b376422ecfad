"""What to say about a directory or file that is not there."""

from pathlib import Path

# What makes the directories of the documentation. {} is the directory.
_MADE_BY = {
    "SmolLM2-135M-Instruct": "python -m hf_models.embedded --output {}",
    "all-MiniLM-L6-v2": "python -m hf_models.embedded --model all-MiniLM-L6-v2 --output {}",
    "movie_snippets": "python -m kd_data.movie_snippets --output {}",
    "smollm2-15-layers": "tune run kd_init_student --config configs/init_student.yaml",
    "reference_manual": "python -m kd_data.reference_manual --output {}",
}
# Those that it makes on its way.
_QUICKSTART = ("SmolLM2-135M-Instruct", "smollm2-15-layers", "reference_manual")


def missing(path: str | Path, kind: str, remedy: str | None = None) -> str:
    """One line: that there is no such ``kind``, where it was looked for, and what to do."""
    path = Path(path)
    where = "" if path.is_absolute() else f" in {Path.cwd()}"
    if remedy is not None:
        return f"{path}: no such {kind}{where}; {remedy}"
    for folder in (path, *path.parents):
        if folder.name in _MADE_BY:
            command = _MADE_BY[folder.name].format(folder)
            target = " or `make quickstart`" if folder.name in _QUICKSTART else ""
            return f"{path}: no such {kind}{where}; make it by `{command}`{target}"
    remedy = "check the path" + (where and ", or start from the folder that it belongs to")
    return f"{path}: no such {kind}{where}; {remedy}"
