"""The model card of a distilled student: a README.md that the Hugging Face Hub understands."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from kd_config.card import CardFacts, last_part
from kd_training.objective.term import Term
from kd_training.output.markdown import markdown_table

# What the Hub calls a task, and what transformers opens its models with.
_TAGS = {
    "causal_lm": "text-generation",
    "seq2seq_lm": "text2text-generation",
    "sequence_classification": "text-classification",
}
_CLASSES = {
    "causal_lm": "AutoModelForCausalLM",
    "seq2seq_lm": "AutoModelForSeq2SeqLM",
    "sequence_classification": "AutoModelForSequenceClassification",
}


def write_model_card(
    directory: str | Path,
    facts: CardFacts,
    metrics: Mapping[str, float],
    terms: Sequence[Term],
) -> Path:
    """Write ``README.md`` into the directory of an exported student.

    Args:
        directory: The student's directory, such as ``out/run/epoch_0``.
        facts: What the config says.
        metrics: The run's latest numbers under the names of ``metrics.jsonl`` (``ce``, ``val/ce``,
            ``weight/ce``, …) and ``summary.json`` (``steps``, ``label_tokens``); each is optional.
        terms: The parts of the objective.

    Returns:
        The card's path.

    Raises:
        OSError: If it cannot be written.
    """
    path = Path(directory) / "README.md"
    ModelCard(_text(path.parent, facts, metrics, terms)).save(path)
    return path


def _text(
    directory: Path, facts: CardFacts, metrics: Mapping[str, float], terms: Sequence[Term]
) -> str:
    data = ModelCardData(
        base_model=facts.base and last_part(facts.base),
        base_model_relation="finetune",
        library_name="transformers",
        pipeline_tag=_TAGS[facts.task],
        tags=["knowledge-distillation", "torchtune"],
    )
    sections = [
        f"# {facts.name}",
        _summary(facts, metrics),
        _loading(facts, directory),
        _objective(facts, metrics, terms),
        _layers(facts, terms),
        "## Data\n\n" + "\n".join(f"- {purpose}: `{text}`" for purpose, text in facts.data),
        "<details>\n<summary>The config that made it</summary>\n\n"
        f"```yaml\n{facts.config}```\n\n</details>",
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def _summary(facts: CardFacts, metrics: Mapping[str, float]) -> str:
    learner = f"`{last_part(facts.base)}`" if facts.base else "A student"
    how = "tuned on labels alone"
    if facts.teacher:
        how = f"distilled from the frozen teacher `{facts.teacher}`"
    trained = [f"{facts.method}; optimizer `{facts.optimizer}`, {facts.precision}"]
    if "steps" in metrics:
        trained.append(f"{metrics['steps']:,.0f} steps of {facts.batch} samples per device")
    if "label_tokens" in metrics:
        counted = "samples" if facts.task == "sequence_classification" else "tokens with a label"
        trained.append(f"{metrics['label_tokens']:,.0f} {counted}")
    return f"{learner}, {how}. Trained: {'; '.join(trained)}."


def _loading(facts: CardFacts, directory: Path) -> str:
    where = _location(facts, directory)
    quoted = shlex.quote(where)
    commands = ""
    if facts.task == "causal_lm":
        commands = (
            f"lm_eval --model hf --model_args pretrained={quoted} --tasks hellaswag\n"
            f"vllm serve {quoted}\n"
        )
    return f"""## Use

```python
model = transformers.{_CLASSES[facts.task]}.from_pretrained({json.dumps(where)})
```

```bash
{commands}hf upload {shlex.quote("your-name/" + facts.name)} {quoted}
```

The last line uploads it. Before that, replace `base_model` at the top, which is a directory's
name here, by the model's id on the Hub.{_adapter(facts, directory)}"""


def _location(facts: CardFacts, directory: Path) -> str:
    """The directory below ``output_dir`` as it is written, whatever absolute path it has here."""
    parent = facts.output_dir
    return directory.name if "${" in parent else str(Path(parent) / directory.name)


def _adapter(facts: CardFacts, directory: Path) -> str:
    """How to load the adapter that lies beside the merged weights; "" without one."""
    if facts.base is None or not (directory / "adapter").is_dir():
        return ""
    adapter = f"{_location(facts, directory)}/adapter"
    return f"""

`adapter/` is the change alone, for the student as it was before:

```python
base = transformers.{_CLASSES[facts.task]}.from_pretrained({json.dumps(facts.base)})
model = peft.PeftModel.from_pretrained(base, {json.dumps(adapter)})
```"""


def _objective(facts: CardFacts, metrics: Mapping[str, float], terms: Iterable[Term]) -> str:
    rows = [
        (
            term.compared,
            f"`{facts.components.get(term.loss_key, term.loss)}`",
            *_numbers(term.name, term.weighs_as, metrics),
        )
        for term in terms
    ]
    total = ("weighted total", "", "", *_numbers("total", None, metrics)[1:])
    head = ("compared with", "loss", "weight", "training", "validation")
    table = markdown_table(head, [*rows, total], texts=2)
    return f"## Objective\n\n{table}\n\nMeans per position, at the last logged step."


def _numbers(
    name: str, weighs_as: str | None, metrics: Mapping[str, float]
) -> tuple[str, str, str]:
    keys = (f"weight/{weighs_as}", name, f"val/{name}")
    weight, training, validation = (f"{metrics[k]:.4g}" if k in metrics else "" for k in keys)
    return weight, training, validation


def _layers(facts: CardFacts, terms: Iterable[Term]) -> str:
    lines = [line for line in (term.describe() for term in terms) if line]
    if not lines:
        return ""
    return (
        f"## Layers\n\n`{facts.mapping}`; {'; '.join(lines)}. "
        "Layers are 0-based and stand for the output of that layer."
    )
