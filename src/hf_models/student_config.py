"""The config.json of a student: its teacher's, but for sizes."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_models.nearest import nearest
from hf_models.raw_config import read_raw_config
from hf_models.torchtune_decoder.config import MODEL_TYPES, parse_config
from hf_models.transformers_model.model import TransformersModel
from hf_models.transformers_model.stacks import DECODER, depth_key

_SIZE = re.compile(
    r"hidden_size|intermediate_size|embedding_size|\w*dim|\w*heads?|d_model|d_ff|d_kv|n_embd|"
    r"n_inner|tie_word_embeddings"
)


def config_changes(
    model: TransformersModel,
    teacher_dir: str | Path,
    blocks: Mapping[str, Sequence[int]],
    overrides: Mapping[str, Any],
) -> dict[str, Any]:
    """The fields of config.json in which a student differs from its teacher.

    Args:
        model: The teacher.
        teacher_dir: Its directory.
        blocks: Stack → the teacher's blocks that the student's are like.
        overrides: Other sizes.

    Raises:
        ValueError: If an override is no size of such a model.
    """
    raw = read_raw_config(teacher_dir)
    _check_sizes(raw, model.module.config.to_dict(), overrides)
    changes: dict[str, Any] = dict(overrides)
    for stack, chosen in blocks.items():
        changes[depth_key(model.module.config, stack)] = len(chosen)
        # What encoder-decoders call so is the encoder's.
        if "num_hidden_layers" in raw and (stack != DECODER or len(blocks) == 1):
            changes["num_hidden_layers"] = len(chosen)
    if len(blocks) == 1:
        (chosen,) = blocks.values()
        depth = next(iter(model.facts.stacks.values())).depth
        # What a config leaves out is derived from a block's number, which changes. Families that we
        # know well have blocks of one kind only.
        known = raw if raw.get("model_type") in MODEL_TYPES else model.module.config.to_dict() | raw
        changes |= _of_each_block(known, depth, chosen)
    if raw.get("max_window_layers") is not None:
        changes["max_window_layers"] = len(chosen)
    return changes


def check_student(raw: Mapping[str, Any]) -> None:
    """Make sure that a config's numbers fit together, where we know the family well.

    Raises:
        ValueError: If they do not.
    """
    if raw.get("model_type") in MODEL_TYPES:
        parse_config(dict(raw), "student")


def _of_each_block(raw: Mapping[str, Any], depth: int, chosen: Sequence[int]) -> dict[str, Any]:
    """Lists with an entry for each block, such as ``layer_types``."""
    return {
        name: [value[block % depth] for block in chosen]
        for name, value in raw.items()
        if isinstance(value, list) and len(value) == depth and "layer" in name
    }


def _check_sizes(
    raw: Mapping[str, Any], known: Mapping[str, Any], overrides: Mapping[str, Any]
) -> None:
    own = {"head_dim"} if raw.get("model_type") in MODEL_TYPES else set()
    names = own | {name for name in {**known, **raw} if _SIZE.fullmatch(name)}
    for name, value in overrides.items():
        if name not in names:
            raise ValueError(
                f"overrides: {name} is none of {', '.join(sorted(names))}{nearest(name, names)}"
            )
        if not isinstance(value, int):
            raise ValueError(f"overrides: {name} is {value!r}; it must be a whole number")
