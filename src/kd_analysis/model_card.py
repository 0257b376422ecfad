"""The model card of a distilled student: a README.md that the Hugging Face Hub understands."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from omegaconf import DictConfig, ListConfig, OmegaConf

from kd_analysis.eval_results import markdown_table
from kd_analysis.wording import component_text, mapping_text, model_directory

_SECRET = re.compile(r"(.*_)?(token|api_key|password|secret)")


def write_model_card(
    directory: str | Path,
    cfg: DictConfig,
    metrics: Mapping[str, float],
    pairs: Sequence[tuple[int, int]] | None = None,
) -> Path:
    """Write ``README.md`` into the directory of an exported student.

    The card names only what the config says: a directory by its last part, the config as it is
    written. Interpolations stay unresolved there and values of keys such as ``token`` are left out,
    because the card is what gets uploaded.

    Args:
        directory: The student's directory, such as ``out/run/epoch_0``.
        cfg: The run's config, resolved or not.
        metrics: The run's latest numbers under the names of ``metrics.jsonl`` (``ce``, ``val/ce``,
            ``weight/ce``, …) and ``summary.json`` (``steps``, ``label_tokens``); each is optional.
        pairs: The (student, teacher) layers that were matched; None or empty for none.

    Returns:
        The card's path.

    Raises:
        OSError: If it cannot be written.
    """
    directory = Path(directory)
    cfg = OmegaConf.create(_public(OmegaConf.to_container(cfg, resolve=False)))
    directories = model_directory(cfg), model_directory(cfg, "teacher_")
    base, teacher = (path and Path(path).name for path in directories)
    if all(metrics.get(f"weight/{part}") == 0 for part in ("kd", "ir")):
        teacher = None  # it was not even loaded
    data = ModelCardData(
        base_model=base,
        base_model_relation="finetune",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["knowledge-distillation", "torchtune"],
    )
    sections = [
        f"# {Path(cfg.output_dir).name}",
        _summary(cfg, base, teacher, metrics),
        _loading(cfg, directory),
        _objective(cfg, metrics),
        _layers(cfg, pairs),
        _data(cfg),
        _config(cfg),
    ]
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n")
    path = directory / "README.md"
    card.save(path)
    return path


def _summary(
    cfg: DictConfig, base: str | None, teacher: str | None, metrics: Mapping[str, float]
) -> str:
    learner = f"`{base}`" if base else "A student"
    how = f"distilled from the frozen teacher `{teacher}`" if teacher else "tuned on labels alone"
    rank = OmegaConf.select(cfg, "model.lora_rank")
    method = "DoRA" if cfg.model.get("use_dora") else "LoRA"
    weights = f"{method} of rank {rank}, merged" if rank else "all weights"
    facts = [f"{weights}; optimizer `{component_text(cfg.optimizer)}`, {cfg.dtype}"]
    if "steps" in metrics:
        batch = f"{cfg.batch_size} x {cfg.gradient_accumulation_steps} samples per device"
        facts.append(f"{metrics['steps']:,.0f} steps of {batch}")
    if "label_tokens" in metrics:
        facts.append(f"{metrics['label_tokens']:,.0f} tokens with a label")
    return f"{learner}, {how}. Trained: {'; '.join(facts)}."


def _loading(cfg: DictConfig, directory: Path) -> str:
    where = _location(cfg, directory)
    quoted = shlex.quote(where)
    return f"""## Use

```python
model = transformers.AutoModelForCausalLM.from_pretrained({json.dumps(where)})
```

```bash
lm_eval --model hf --model_args pretrained={quoted} --tasks hellaswag
vllm serve {quoted}
hf upload {shlex.quote("your-name/" + Path(cfg.output_dir).name)} {quoted}
```

The last line uploads it. Before that, replace `base_model` at the top, which is a directory's
name here, by the model's id on the Hub."""


def _location(cfg: DictConfig, directory: Path) -> str:
    """The directory below ``output_dir`` as it is written, whatever absolute path it has here."""
    written = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(written, dict)
    parent = str(written["output_dir"])
    return directory.name if "${" in parent else str(Path(parent) / directory.name)


def _objective(cfg: DictConfig, metrics: Mapping[str, float]) -> str:
    scopes = cfg.get("token_scope") or {}
    parts = {
        "ce": ("labels", "cross-entropy"),
        "kd": (f"teacher's distribution, {scopes.get('kd', 'labels')}", cfg.get("kd_loss")),
        "prompt_kd": ("teacher's distribution, prompt", cfg.get("prompt_kd_loss")),
        "ir": (f"teacher's layers, {scopes.get('ir', 'labels')}", cfg.get("ir_loss")),
    }
    rows = [
        (compared, f"`{component_text(node)}`", *_numbers(part, metrics))
        for part, (compared, node) in parts.items()
        # Without numbers the card still says what the objective is made of.
        if part in metrics or ("total" not in metrics and node is not None)
    ]
    total = ("weighted total", "", "", *_numbers("total", metrics)[1:])
    head = ("compared with", "loss", "weight", "training", "validation")
    table = markdown_table(head, [*rows, total], texts=2)
    return f"## Objective\n\n{table}\n\nMeans per position, at the last logged step."


def _numbers(part: str, metrics: Mapping[str, float]) -> tuple[str, str, str]:
    weight = "kd" if part == "prompt_kd" else part
    keys = (f"weight/{weight}", part, f"val/{part}")
    weight, training, validation = (f"{metrics[k]:.4g}" if k in metrics else "" for k in keys)
    return weight, training, validation


def _layers(cfg: DictConfig, pairs: Sequence[tuple[int, int]] | None) -> str:
    if not pairs:
        return ""
    matched = ", ".join(f"{student}-{teacher}" for student, teacher in pairs)
    return (
        f"## Layers\n\n`{mapping_text(cfg.layer_mapping)}`, student-teacher: {matched}. "
        "Layers are 0-based and stand for the output of that decoder layer."
    )


def _data(cfg: DictConfig) -> str:
    lines = []
    for key, title in (("dataset", "training"), ("dataset_val", "validation")):
        node = cfg.get(key)
        nodes = list(node) if isinstance(node, ListConfig) else [node]
        lines += [f"- {title}: `{component_text(one)}`" for one in nodes if one is not None]
    return "## Data\n\n" + "\n".join(lines)


def _config(cfg: DictConfig) -> str:
    return (
        "<details>\n<summary>The config that made it</summary>\n\n"
        f"```yaml\n{OmegaConf.to_yaml(cfg)}```\n\n</details>"
    )


def _public(node: Any) -> Any:
    """The node without the values of keys such as ``token``."""
    if isinstance(node, list):
        return [_public(value) for value in node]
    if not isinstance(node, dict):
        return node
    return {
        key: "removed" if value and _SECRET.fullmatch(str(key)) else _public(value)
        for key, value in node.items()
    }
