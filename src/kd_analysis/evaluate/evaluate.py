"""A run's teacher, its student before and all its finished students, on held-out data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from hf_models.model import Model
from kd_analysis.evaluate import scores
from kd_analysis.evaluate.scores import Scores
from kd_analysis.open_model import open_model
from kd_training.output.markdown import markdown_table

TABLE = "evaluation.md"


@dataclass(frozen=True)
class Data:
    """What every model is scored on.

    Attributes:
        name: What tables call it.
        dataset: Samples of the models' task.
        collate: Makes batches of them.
        tokenizer: What has made them.
        ignore_index: Label of positions without a target.
    """

    name: str
    dataset: Any
    collate: Any
    tokenizer: Any
    ignore_index: int


def evaluate(
    models: Mapping[str, Path],
    data: Data,
    output_dir: Path,
    task: str,
    device: str = "cpu",
    dtype: str = "fp32",
    batch_size: int = 32,
    max_samples: int | None = None,
    num_beams: int = 4,
    max_new_tokens: int = 128,
) -> str:
    """Score models and write what comes out, as JSON beside each and as one table.

    Args:
        models: Name in the table → a model's directory.
        data: What they are scored on.
        output_dir: The run's directory. Results of models that lie elsewhere, and the table, go
            there.
        task: The models' task.
        device: Where they run.
        dtype: What they compute in.
        batch_size: Samples at a time.
        max_samples: Only so many samples, the first ones; None: all.
        num_beams: Of the beam search of an encoder-decoder.
        max_new_tokens: The longest text that it writes.

    Returns:
        The table, in markdown.

    Raises:
        ValueError: If a model cannot be used.
        OSError: If a file is missing or cannot be written.
    """
    count = min(len(data.dataset), max_samples or len(data.dataset))
    samples = Subset(data.dataset, range(count))
    # The longest first would save time; in order it is reproducible and fits the references.
    loader = DataLoader(samples, batch_size, collate_fn=data.collate)
    place = torch.device(device)
    found: dict[str, Scores] = {}
    for name, directory in models.items():
        model = open_model(directory, task, place, dtype)
        with torch.no_grad():
            found[name] = _scores(model, loader, data, place, num_beams, max_new_tokens)
        inside = directory.resolve().is_relative_to(output_dir.resolve())
        folder = directory / "eval" if inside else output_dir / "eval" / name.replace(" ", "_")
        _write(folder, directory, data.name, count, found[name])
    table = _table(found)
    output_dir.mkdir(parents=True, exist_ok=True)
    title = f"# {data.name}: {count} held-out samples\n\n"
    (output_dir / TABLE).write_text(f"{title}{table}\n", encoding="utf-8")
    return table


def _scores(
    model: Model,
    loader: DataLoader,
    data: Data,
    device: torch.device,
    num_beams: int,
    max_new_tokens: int,
) -> Scores:
    if model.facts.task == "sequence_classification":
        return scores.classification(model, loader, device)
    if model.facts.task == "causal_lm":
        return scores.perplexity(model, loader, device, data.ignore_index)
    references = [_reference(data, i) for i in range(len(loader.dataset))]  # type: ignore[arg-type]
    return scores.generation(
        model, loader, device, data.tokenizer, references, num_beams, max_new_tokens
    )


def _reference(data: Data, index: int) -> str:
    """The target as it is in the data, or else as its tokens read."""
    texts = getattr(data.dataset, "texts", None)
    if texts is not None:
        return texts(index)[1]
    labels = [int(label) for label in data.dataset[index]["labels"]]
    return data.tokenizer.decode(labels, skip_special_tokens=True).strip()


def _write(folder: Path, model: Path, name: str, count: int, values: Scores) -> None:
    """As lm_eval writes its results, so that every report reads both."""
    time = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")
    metrics = {f"{metric},none": float(value) for metric, value in values.items()}
    report = {
        "results": {name: {"alias": name, **metrics}},
        "n-samples": {name: {"original": count, "effective": count}},
        "config": {"model": "kd_evaluate", "model_args": {"pretrained": str(model)}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=2)
    (folder / f"results_{time}.json").write_text(text + "\n", encoding="utf-8")


def _table(found: Mapping[str, Scores]) -> str:
    metrics = [m for m in next(iter(found.values())) if not m.endswith("_stderr")]
    rows = (
        [name, *(_cell(values, metric) for metric in metrics)] for name, values in found.items()
    )
    return markdown_table(["model", *metrics], rows)


def _cell(values: Scores, metric: str) -> str:
    error = values.get(f"{metric}_stderr")
    digits = 3 if abs(values[metric]) < 10 else 2
    cell = f"{values[metric]:,.{digits}f}"
    return cell if error is None else f"{cell} ± {error:.{digits}f}"
