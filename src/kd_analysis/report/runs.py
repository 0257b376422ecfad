"""Finished runs below a folder, with what lm_eval found out about their models."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from kd_analysis.report.eval_results import (
    Score,
    evaluated_model,
    main_scores,
    read_results,
    result_files,
)
from kd_config.wording import component_text, mapping_text, model_directory

TEACHER = "teacher"
BEFORE = "student before"


@dataclass(frozen=True)
class Row:
    """A model of a group.

    Attributes:
        method: ``teacher``, ``student before``, or a run's layer matching.
        objective: A run's divergence and weights.
        kd_loss: Class name of the divergence.
        model: Its directory.
        scores: Name of a column -> the newest score.
    """

    method: str
    objective: str
    kd_loss: str
    model: Path
    scores: dict[str, Score]


@dataclass
class Group:
    """Runs of one student under one teacher, and the two as they were before."""

    teacher: Path | None
    student: Path | None
    rows: list[Row] = field(default_factory=list)
    not_evaluated: list[Path] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """Every row's columns, in the order in which they appear."""
        return list(dict.fromkeys(column for row in self.rows for column in row.scores))


def find_groups(roots: Iterable[Path]) -> list[Group]:
    """The finished runs below ``roots``, grouped by teacher and student, with their scores.

    lm_eval's results are looked for below ``roots`` and in the teachers' and students' own
    directories; a later result of the same task replaces an earlier one.

    Raises:
        ValueError: If there is no finished run, or a file cannot be read.
    """
    roots = list(roots)
    runs = [run for root in roots for run in _runs(root)]
    if not runs:
        raise ValueError(f"{', '.join(map(str, roots))}: no finished run (config.yaml and epoch_*)")
    groups: dict[tuple[Path | None, Path | None], Group] = {}
    for cfg, _ in runs:
        groups.setdefault(_pair(cfg), Group(*_pair(cfg)))
    bases = {path for pair in groups for path in pair if path is not None}
    scores = _scores([*roots, *sorted(bases)])
    for group in groups.values():
        for method, model in ((TEACHER, group.teacher), (BEFORE, group.student)):
            if model is not None and model in scores:
                group.rows.append(Row(method, "", "", model, scores[model]))
            elif model is not None:
                group.not_evaluated.append(model)
    for cfg, checkpoints in runs:
        group = groups[_pair(cfg)]
        rows = [_row(cfg, model, scores[model]) for model in checkpoints if model in scores]
        group.rows += rows
        if not rows:
            group.not_evaluated.append(checkpoints[-1])
    return list(groups.values())


def checkpoints_of(output_dir: Path) -> list[Path]:
    """A run's exported students: ``best`` first, then the epochs in order."""
    found = [path.parent for path in output_dir.glob("epoch_*/config.json")]
    epochs = sorted(found, key=lambda path: int(path.name.removeprefix("epoch_")))
    best = output_dir / "best"
    return ([best] if (best / "config.json").is_file() else []) + epochs


def models_of_run(cfg: DictConfig) -> dict[str, Path]:
    """The models that a run is about: teacher, student before, every finished student."""
    named = {TEACHER: model_directory(cfg, "teacher_"), BEFORE: model_directory(cfg)}
    finished = checkpoints_of(Path(cfg.output_dir))
    models = {name: Path(path) for name, path in named.items() if path is not None}
    return models | {f"student {path.name}": path for path in finished}


def analysis_of_run(cfg: DictConfig) -> dict[str, Any]:
    """The arguments with which ``probe.analyze.analyze`` looks into a run's students.

    Raises:
        ValueError: If the run has no teacher, or one with a tokenizer or a prompt of its own.
    """
    if cfg.teacher_tokenizer is not None:
        raise ValueError(
            "config: teacher_tokenizer: the analysis compares token by token, and student and "
            "teacher have not the same; analyse a run whose models share a tokenizer"
        )
    if cfg.teacher_prompt is not None:
        raise ValueError(
            "config: teacher_prompt: the analysis reads the texts alone; set teacher_prompt=null "
            "to look at a teacher without it"
        )
    if model_directory(cfg, "teacher_") is None:
        raise ValueError("config: the analysis needs a teacher: set teacher_checkpointer")
    output_dir = Path(cfg.output_dir)
    students = {"before": model_directory(cfg)}
    checkpoints = checkpoints_of(output_dir)
    if checkpoints:
        students["after"] = str(checkpoints[-1])
    return {
        "teacher_dir": model_directory(cfg, "teacher_"),
        "students": students,
        "output_dir": str(output_dir / "analysis"),
        "device": cfg.device,
        "dtype": cfg.dtype,
    }


def _runs(root: Path) -> Iterator[tuple[DictConfig, list[Path]]]:
    for path in sorted(root.rglob("config.yaml")):
        checkpoints = [model.resolve() for model in checkpoints_of(path.parent)]
        if not checkpoints:
            continue
        try:
            cfg = OmegaConf.load(path)
            OmegaConf.resolve(cfg)
        except (OmegaConfBaseException, YAMLError) as err:
            raise ValueError(f"{path}: cannot be read: {' '.join(str(err).split())}") from err
        if isinstance(cfg, DictConfig):
            yield cfg, checkpoints


def _scores(roots: Iterable[Path]) -> dict[Path, dict[str, Score]]:
    found: dict[Path, dict[str, Score]] = {}
    files = {path.resolve() for root in roots for path in result_files(root)}
    for path in sorted(files, key=lambda path: (path.name, path)):
        report = read_results(path)
        model = evaluated_model(path, report)
        if model is not None:
            found.setdefault(model.resolve(), {}).update(main_scores(report))
    return found


def _pair(cfg: DictConfig) -> tuple[Path | None, Path | None]:
    """Absolute directories of a run's teacher and student."""
    teacher, student = model_directory(cfg, "teacher_"), model_directory(cfg)
    return (
        None if teacher is None else Path(teacher).resolve(),
        None if student is None else Path(student).resolve(),
    )


def _row(cfg: DictConfig, model: Path, scores: dict[str, Score]) -> Row:
    divergence = component_text(cfg.get("kd_loss")).removeprefix("kd_losses.").removesuffix("()")
    name = divergence.partition("(")[0].rpartition(".")[2]
    objective = f"{divergence}; {_weights(cfg)}"
    return Row(mapping_text(cfg.get("layer_mapping")), objective, name, model, scores)


def _weights(cfg: DictConfig) -> str:
    if not OmegaConf.select(cfg, "loss_scaling.enabled"):
        return f"kd_ratio {cfg.get('kd_ratio', 0.5):g}"
    shares = OmegaConf.select(cfg, "loss_scaling.dynamic.shares")
    scales = shares or OmegaConf.select(cfg, "loss_scaling.manual_scales")
    layers = mapping_text(cfg.get("layer_mapping")) != "none"
    parts = (f"{part} {weight:g}" for part, weight in scales.items() if layers or part != "ir")
    text = ", ".join(parts)
    return f"shares {text}" if shares else text
