"""From an lm_eval task's documents to prompts and completions."""

from typing import Any

_KINDS = {"train": "training", "validation": "validation", "test": "test"}


class TaskTexts:
    """Rows of ``prompt`` and ``completion``, made when asked for. See ``lm_eval_task``.

    Args:
        task: lm_eval's task object.
        split: ``train``, ``validation`` or ``test``.
        max_samples: Only so many documents, the first ones; None: all.
        num_fewshot: Examples in front of each; None: the task's own number.

    Raises:
        ValueError: If an argument is out of range, or if the first document has no answer, as in
            splits whose answers are secret.
    """

    def __init__(
        self,
        task: Any,
        split: str,
        max_samples: int | None = None,
        num_fewshot: int | None = None,
    ) -> None:
        self._task = task
        self._docs = _documents(task, split)
        if max_samples is not None and max_samples < 1:
            raise ValueError(f"max_samples is {max_samples}; it must be at least 1")
        self._len = min(len(self._docs), max_samples or len(self._docs))
        self._num_fewshot = num_fewshot if num_fewshot is not None else task.config.num_fewshot or 0
        if self._num_fewshot < 0:
            raise ValueError(f"num_fewshot is {num_fewshot}; it must be at least 0")
        if self._num_fewshot:
            _leave_out_of_own_examples(task, split)
        if self._len:
            self[0]

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, index: int) -> dict[str, str]:
        index = range(self._len)[index]
        doc = self._docs[index]
        if self._num_fewshot:
            self._task.set_fewshot_seed(index)
        context = self._task.fewshot_context(
            doc, num_fewshot=self._num_fewshot, gen_prefix=self._task.doc_to_prefix(doc)
        )
        try:
            prompt, completion = _right_answer(self._task, doc, context)
        except _NoAnswerError as error:
            raise ValueError(
                f"lm_eval task {self._task.task_name}: document {index} has no answer to learn: "
                f"{error}"
            ) from error
        return {"prompt": prompt, "completion": completion}


class _NoAnswerError(Exception):
    """What is found where the answer should be."""


def _documents(task: Any, split: str) -> Any:
    if split not in _KINDS:
        raise ValueError(f"split is {split!r}; use {', '.join(_KINDS)}")
    has = [name for name, kind in _KINDS.items() if getattr(task, f"has_{kind}_docs")()]
    if split not in has:
        raise ValueError(
            f"lm_eval task {task.task_name} has no {split} split; it has {' and '.join(has)}"
        )
    return getattr(task, f"{_KINDS[split]}_docs")()


def _leave_out_of_own_examples(task: Any, split: str) -> None:
    """Make sure that no document is an example in front of itself.

    lm_eval leaves a document out only where the examples come from the split called test.
    """
    config, fewshot = task.config, task.fewshot_cfg
    pool = fewshot.split
    if pool is None and fewshot.samples is None:
        pool = config.training_split or config.validation_split or config.test_split
    if pool is not None and pool == getattr(config, f"{_KINDS[split]}_split"):
        config.test_split = fewshot.split


def _right_answer(task: Any, doc: Any, context: Any) -> tuple[str, str]:
    """Context and continuation of the right answer."""
    requests = task.construct_requests(doc, context, metadata=(task.config.task, 0, 1))
    if not isinstance(requests, list):
        requests = [requests]
    if task.OUTPUT_TYPE == "multiple_choice":
        prompt, completion = requests[_right_choice(task, doc)].args[:2]
        return prompt, completion
    request = requests[0]
    if request.request_type == "loglikelihood":
        return request.args[0], request.args[1]
    if request.request_type == "loglikelihood_rolling":
        return "", request.args[0]
    return request.args[0], _target(task, doc)


def _right_choice(task: Any, doc: Any) -> int:
    """Index of the right choice, in each of the forms in which tasks give it."""
    # With the choices in the context, it is doc_to_text that tells which of them is right.
    in_context = getattr(task, "multiple_input", 0)
    gold = task.doc_to_text(doc) if in_context else task.doc_to_target(doc)
    choices = task.doc_to_choice(doc)
    if isinstance(gold, list):
        gold = gold[0] if gold else None
    if isinstance(gold, str) and gold in choices:
        gold = choices.index(gold)
    if not isinstance(gold, int) or not 0 <= gold < len(choices):
        raise _NoAnswerError(f"{gold!r} is none of the {len(choices)} choices")
    return gold


def _target(task: Any, doc: Any) -> str:
    """What a model is meant to generate, joined to the context as lm_eval joins its examples."""
    target = task.doc_to_target(doc)
    if isinstance(target, list):
        target = target[0] if target else ""
    if isinstance(target, int) and task.config.doc_to_choice is not None:
        target = task.doc_to_choice(doc)[target]
    target = str(target)
    if not target.strip():
        raise _NoAnswerError("its target is empty")
    prefix = task.doc_to_prefix(doc)
    if not prefix:
        return task.config.target_delimiter + target
    return target if prefix[-1].isspace() or target[0].isspace() else f" {target}"
