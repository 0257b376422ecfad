"""The model card of a distilled student: a README.md that the Hugging Face Hub understands."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from omegaconf import DictConfig, ListConfig, OmegaConf

from kd_config.public import environment_unresolved, public_config
from kd_config.wording import component_text, mapping_text, model_directory
from kd_training.output.markdown import markdown_table


def write_model_card(
    directory: str | Path,
    cfg: DictConfig,
    metrics: Mapping[str, float],
    pairs: Sequence[tuple[int, int]] | None = None,
) -> Path:
    """Write ``README.md`` into the directory of an exported student.

    The card names only what the config says: a directory by its last part, the config as it is
    written. What comes from the environment stays unresolved, values of keys such as ``token`` and
    absolute paths are left out, because the card is what gets uploaded.

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
    path = Path(directory) / "README.md"
    with environment_unresolved():
        ModelCard(_text(path.parent, public_config(cfg), metrics, pairs)).save(path)
    return path


def _text(
    directory: Path,
    cfg: DictConfig,
    metrics: Mapping[str, float],
    pairs: Sequence[tuple[int, int]] | None,
) -> str:
    directories = model_directory(cfg), model_directory(cfg, "teacher_")
    base, teacher = (path and _name(path) for path in directories)
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
        f"# {_name(cfg.output_dir)}",
        _summary(cfg, base, teacher, metrics),
        _loading(cfg, directory),
        _objective(cfg, metrics),
        _layers(cfg, pairs),
        _data(cfg),
        _config(cfg),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def _name(path: str) -> str:
    """The last part of a path; all of it where that is part of an interpolation."""
    name = Path(path).name
    return path if "}" in name or "${" in name else name


def _summary(
    cfg: DictConfig, base: str | None, teacher: str | None, metrics: Mapping[str, float]
) -> str:
    learner = f"`{base}`" if base else "A student"
    how = f"distilled from the frozen teacher `{teacher}`" if teacher else "tuned on labels alone"
    rank = OmegaConf.select(cfg, "model.lora_rank")
    method = "DoRA" if cfg.model.get("use_dora") else "LoRA"
    weights = f"{method} of rank {rank}, merged" if rank else "all weights"
    facts = [f"{weights}; optimizer `{component_text(cfg.optimizer)}`, {_precision(cfg, rank)}"]
    if "steps" in metrics:
        batch = f"{cfg.batch_size} x {cfg.gradient_accumulation_steps} samples per device"
        facts.append(f"{metrics['steps']:,.0f} steps of {batch}")
    if "label_tokens" in metrics:
        facts.append(f"{metrics['label_tokens']:,.0f} tokens with a label")
    return f"{learner}, {how}. Trained: {'; '.join(facts)}."


def _precision(cfg: DictConfig, rank: int | None) -> str:
    rounded = cfg.optimizer.get("bf16_stochastic_round") and not rank
    return cfg.dtype if cfg.dtype == "fp32" or rounded else f"{cfg.dtype} with fp32 updates"


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
hf upload {shlex.quote("your-name/" + _name(cfg.output_dir))} {quoted}
```

The last line uploads it. Before that, replace `base_model` at the top, which is a directory's
name here, by the model's id on the Hub.{_adapter(cfg, directory)}"""


def _location(cfg: DictConfig, directory: Path) -> str:
    """The directory below ``output_dir`` as it is written, whatever absolute path it has here."""
    parent = str(cfg.output_dir)
    return directory.name if "${" in parent else str(Path(parent) / directory.name)


def _adapter(cfg: DictConfig, directory: Path) -> str:
    """How to load the adapter that lies beside the merged weights; "" without one."""
    base = model_directory(cfg)
    if base is None or not (directory / "adapter").is_dir():
        return ""
    adapter = f"{_location(cfg, directory)}/adapter"
    return f"""

`adapter/` is the change alone, for the student as it was before:

```python
base = transformers.AutoModelForCausalLM.from_pretrained({json.dumps(base)})
model = peft.PeftModel.from_pretrained(base, {json.dumps(adapter)})
```"""


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
