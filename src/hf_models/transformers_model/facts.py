"""What is known of a transformers model before its weights."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from hf_models.model import ModelFacts
from hf_models.transformers_model.stacks import stack_sizes

CLASSIFICATION = "sequence_classification"


def facts_of(module: Any, task: str, stack_paths: Mapping[str, str]) -> ModelFacts:
    """Sizes, special tokens and abilities, from the module and its config."""
    config = module.config
    return ModelFacts(
        task=task,
        vocabulary=module.get_input_embeddings().num_embeddings,
        max_positions=_max_positions(module),
        stacks=stack_sizes(module, stack_paths),
        classes=config.num_labels if task == CLASSIFICATION else None,
        pad_id=getattr(config, "pad_token_id", None),
        decoder_start_id=getattr(config, "decoder_start_token_id", None),
        separates_documents="position_ids" in inspect.signature(module.forward).parameters,
        name=type(module).__name__,
    )


def new_modules(module: Any) -> list[str]:
    """The children of a classifier that its base model has not."""
    base = module.base_model_prefix
    named = module.named_children()
    return [name for name, one in named if name != base and any(True for _ in one.parameters())]


def _max_positions(module: Any) -> int | None:
    """The longest sequence that positions are known for; None without a limit."""
    limit = getattr(module.config, "max_position_embeddings", None)
    for name, one in module.named_modules():
        # RoBERTa and its kin count from the row behind the padding's.
        if isinstance(one, nn.Embedding) and name.endswith("position_embeddings"):
            offset = 0 if one.padding_idx is None else one.padding_idx + 1
            limit = one.num_embeddings - offset
    return limit
