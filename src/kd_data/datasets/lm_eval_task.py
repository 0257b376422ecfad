"""Any lm_eval task's own documents, in the very words that lm_eval scores."""

import difflib
import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from torchtune.datasets import PackedDataset
from torchtune.modules.transforms.tokenizers import ModelTokenizer

from kd_data.datasets.prompt_completion import PromptCompletionDataset
from kd_data.datasets.seq2seq import Seq2SeqDataset
from kd_data.datasets.sources import require_tokenizer
from kd_data.datasets.task_texts import TaskTexts
from kd_data.packing import pack
from kd_data.squad_metrics import provide_squad_metrics

_TASK_LINE = re.compile(r"""^["']?task["']?:[ ]*["']?([^"'\s]+)""", re.MULTILINE)


def lm_eval_task(
    tokenizer: ModelTokenizer,
    task: str,
    split: str = "train",
    include_path: str | Path | None = None,
    max_samples: int | None = None,
    train_on_prompt: bool = False,
    num_fewshot: int | None = None,
    add_eos: bool = True,
    packed: bool = False,
    seq2seq: bool = False,
) -> PromptCompletionDataset | PackedDataset | Seq2SeqDataset:
    """The documents of an lm_eval task, each with its right answer.

    Prompt and completion are the context and continuation that lm_eval scores for the right
    answer: ``multiple_choice`` (choices in the continuation, or in the context as winogrande has
    them) and ``loglikelihood`` as the task requests them; ``generate_until`` the context and its
    target, joined as in the task's few-shot examples; ``loglikelihood_rolling`` the text as
    completion. Of several right answers the first is taken. Both are tokenised at once, and what
    is too long loses its beginning, as in lm_eval.

    Args:
        tokenizer: torchtune tokenizer.
        task: Name of a single task, such as ``hellaswag``.
        split: ``train``, ``validation`` or ``test``, in the task's own sense.
        include_path: Directory of further tasks' YAML files; they come before lm_eval's own.
        max_samples: Only so many documents, the first ones.
        train_on_prompt: Whether the prompt's tokens are labels too.
        num_fewshot: Examples in front of each document, drawn with the document's number as seed
            and never the document itself. None: the task's own number, as for ``lm_eval``.
        add_eos: Put the end-of-sequence token behind the answer, as a label.
        packed: Several documents to a row of ``tokenizer.max_seq_len`` tokens.
        seq2seq: Prompt and completion as an encoder-decoder reads and writes them, as source and
            target, whose end is always a label; what is too long loses its end. Neither ``packed``
            nor ``train_on_prompt`` then.

    Returns:
        Dataset of ``{"tokens": [...], "labels": [...]}``, labels unshifted.

    Raises:
        FileNotFoundError: If ``include_path`` is no directory.
        ValueError: If the task is unknown, cannot be loaded or has no such split, if an argument is
            out of range, or a document has no answer.
    """
    if seq2seq:
        require_tokenizer(tokenizer)
        if packed or train_on_prompt:
            raise ValueError("seq2seq is true: leave out packed and train_on_prompt")
    loaded = _load(task, _definition(task, include_path), num_fewshot)
    texts = TaskTexts(loaded, split, max_samples, num_fewshot)
    if seq2seq:
        return Seq2SeqDataset(tokenizer, _SourceAndTarget(texts))
    dataset = PromptCompletionDataset(
        tokenizer,
        texts,
        "prompt",
        "completion",
        train_on_prompt,
        add_eos,
    )
    return pack(dataset, tokenizer) if packed else dataset


class _SourceAndTarget:
    """Prompts and completions, without the space that joins the two."""

    def __init__(self, texts: TaskTexts) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> tuple[str, str]:
        row = self._texts[index]
        return row["prompt"], row["completion"].strip()


def _load(name: str, definition: Path, num_fewshot: int | None) -> Any:
    """The task; without examples to draw from, unless it needs some.

    lm_eval keeps a whole split in memory to draw examples from.
    """
    if not num_fewshot:
        no_examples: dict[str, Any] = {"fewshot_split": None, "fewshot_config": {"samples": []}}
        with TemporaryDirectory() as directory:
            path = Path(directory) / "task.yaml"
            spec = {"include": str(definition.resolve()), "task": name} | no_examples
            path.write_text(yaml.safe_dump(spec), encoding="utf-8")
            task = _load_file(name, path)
        if num_fewshot == 0 or not task.config.num_fewshot:
            return task
    return _load_file(name, definition)


def _load_file(name: str, definition: Path) -> Any:
    # Takes seconds to import, and most runs name no task.
    from lm_eval.tasks import TaskManager

    provide_squad_metrics()
    try:
        tasks = TaskManager(include_defaults=False).load(str(definition))["tasks"]
    except Exception as error:  # a task brings code of its own, and may fetch its data
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"lm_eval task {name} cannot be loaded: {why}") from error
    (task,) = tasks.values()
    if getattr(task, "MULTIMODAL", False):
        raise ValueError(f"lm_eval task {name} has images or sound; only text can be learned from")
    return task


def _definition(name: str, include_path: str | Path | None) -> Path:
    """The YAML file that defines a task."""
    import lm_eval

    files: dict[str, Path] = {}
    if include_path is not None:
        if not Path(include_path).is_dir():
            raise FileNotFoundError(f"include_path: no such directory: {include_path}")
        files = _task_files(Path(include_path))
    if name not in files:
        files = _lm_eval_files(Path(lm_eval.__file__).parent / "tasks") | files
    if name not in files:
        near = difflib.get_close_matches(name, files, n=3, cutoff=0.5)
        nearest = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"{name} is no lm_eval task (one task, not a group){nearest}")
    return files[name]


def _task_files(root: Path) -> dict[str, Path]:
    """Task names and where they are defined.

    Found in the text, because lm_eval's own index parses its 14,000 files for half a minute.
    """
    files: dict[str, Path] = {}
    for path in sorted(root.rglob("*.yaml"), key=Path.as_posix):
        for match in _TASK_LINE.finditer(path.read_text(encoding="utf-8")):
            files.setdefault(match[1], path)
    return files


_lm_eval_files = cache(_task_files)
