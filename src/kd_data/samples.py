"""From the config's dataset nodes to samples, and what is wrong with them."""

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig
from torch.utils.data import Dataset
from torchtune.datasets import ConcatDataset

from hf_models.model import ModelFacts
from kd_config.components import component, expect, reason
from kd_config.dataset_nodes import nodes_of
from kd_data.tasks.causal_lm import documents_of
from kd_data.two_tokenizers import TwoTokenizers

_LOOK_FOR_LABELS_IN = 1000
# Even single bytes meet the ends of another tokenizer's words more often.
_FEWEST_PAIRED = 0.05


def build_dataset(
    node: DictConfig | ListConfig,
    tokenizer: Any,
    key: str,
    ignore_index: int,
    facts: ModelFacts | None = None,
    labelled: bool = True,
) -> Any:
    """The dataset that ``node`` names; a list of nodes is concatenated.

    Args:
        node: What a config's key ``key`` holds.
        tokenizer: What it is built with.
        key: Its key.
        ignore_index: Label of what is no target.
        facts: The model that it is for; None for a causal one.
        labelled: Whether it must have labels; prompts alone have none.

    Raises:
        ValueError: If it is empty, its first samples carry no label at all, or a label is none of
            the model's classes.
    """
    built = [component(one, key, tokenizer) for one in nodes_of(node)]
    if facts is not None and facts.classes is not None:
        _check_classes(built, key, facts.classes)
    dataset = _Named(built[0] if len(built) == 1 else ConcatDataset(built), key)
    if len(dataset) == 0:
        raise ValueError(f"{key} is empty; check its files, split and filters")
    looked_at = min(len(dataset), _LOOK_FOR_LABELS_IN)
    # The first token of a text that is predicted is nobody's target.
    first = 1 if facts is None or facts.task == "causal_lm" else 0
    if labelled and not any(_has_target(dataset[i], ignore_index, first) for i in range(looked_at)):
        raise ValueError(
            f"{key}: all labels of its first {looked_at} samples are masked: nothing to learn; "
            "check its columns, train_on_prompt/train_on_input and tokenizer.max_seq_len"
        )
    return dataset


def build_samples(
    node: DictConfig | ListConfig,
    key: str,
    tokenizer: Any,
    teacher_tokenizer: Any,
    ignore_index: int,
    facts: ModelFacts | None = None,
    labelled: bool = True,
) -> Any:
    """The dataset that ``node`` names, for a teacher with a tokenizer of its own in its tokens too.

    Raises:
        ValueError: See `build_dataset`; or if hardly a target has a counterpart of the teacher's.
    """
    dataset = build_dataset(node, tokenizer, key, ignore_index, facts, labelled)
    if teacher_tokenizer is None:
        return dataset
    teachers = build_dataset(node, teacher_tokenizer, key, ignore_index)
    samples = TwoTokenizers(dataset, teachers, tokenizer, teacher_tokenizer, ignore_index)
    share = samples.paired_share
    if share is not None and share < _FEWEST_PAIRED:
        raise ValueError(
            f"{key}: only {share:.1%} of the targets of its first samples end where one of "
            "teacher_tokenizer's does: too few to compare; tokenizer and teacher_tokenizer must "
            "keep the text as it is and label the same of it, as two hf_models.tokenizer do"
        )
    return samples


def alone(sample: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A sample's documents as samples of their own: those of a packed one, else the sample."""
    return list(documents_of(sample)) if "seq_lens" in sample else [sample]


def build_tokenizer(node: DictConfig | None, key: str) -> Any:
    """The tokenizer that ``node`` names; None for none.

    Raises:
        ValueError: If it cannot pad, or cuts samples to a length that leaves nothing to predict.
    """
    tokenizer = component(node, key)
    if tokenizer is None:
        return None
    length = getattr(tokenizer, "max_seq_len", None)
    if length is not None and not (isinstance(length, int) and length >= 2):
        raise ValueError(f"config: {key}.max_seq_len is {length!r}; it must be at least 2, or null")
    expect(hasattr(tokenizer, "pad_id"), node, key, "a tokenizer with a pad_id")
    return tokenizer


def _has_target(sample: dict[str, Any], ignore_index: int, first: int) -> bool:
    return any(int(label) != ignore_index for label in sample["labels"][first:])


def _check_classes(datasets: Sequence[Any], key: str, classes: int) -> None:
    """Look at all labels at once, where a dataset knows its largest."""
    for dataset in datasets:
        largest = getattr(dataset, "largest_label", None)
        if largest is not None and largest >= classes:
            raise ValueError(
                f"config: {key}: its labels go up to {largest}, but the model has {classes} "
                f"classes, from 0 to {classes - 1}; set model.num_labels, or mend the data"
            )


class _Named(Dataset):
    """A dataset whose errors say which it is, and which of its samples."""

    def __init__(self, dataset: Any, key: str) -> None:
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise ValueError(f"config: {key} builds a {type(dataset).__name__}, no map of samples")
        self._dataset, self._key = dataset, key

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def texts(self) -> Any:
        """Index → source and target, of a dataset that keeps them; else None."""
        return getattr(self._dataset, "texts", None)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return self._dataset[index]
        except Exception as err:  # any dataset may be named, so it may raise anything
            raise ValueError(
                f"{self._key}: sample {index}: {type(err).__name__}: {reason(err)}; check its "
                "columns and values"
            ) from err


class Share(Dataset):
    """Every n-th sample. Shares are equally long: blank samples fill up, which count nowhere."""

    def __init__(self, dataset: Any, rank: int, world_size: int) -> None:
        self.whole = self._dataset = dataset
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        return -(-len(self._dataset) // self._world_size)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = index * self._world_size + self._rank
        if number < len(self._dataset):
            return self._dataset[number]
        return {**self._dataset[0], "blank": True}
