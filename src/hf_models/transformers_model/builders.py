"""Models of any family that transformers knows, built empty from a directory's config.json."""

from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from hf_models.transformers_model.config import AUTO_CLASSES, read_auto_config
from hf_models.transformers_model.model import TransformersModel
from hf_models.transformers_model.quiet import quiet


def auto_model(
    checkpoint_dir: str | Path,
    task: str | None = None,
    num_labels: int | None = None,
    attn_implementation: str | None = None,
    output_hidden_states: bool = False,
) -> TransformersModel:
    """A model of transformers' own code, all of whose weights are trained.

    Its parameters lie on the meta device, in torch's default dtype.

    Args:
        checkpoint_dir: Hugging Face directory; only config.json is read.
        task: ``causal_lm``, ``seq2seq_lm`` or ``sequence_classification``. None: what config.json's
            architectures say.
        num_labels: Number of classes of a classifier. None: config.json's.
        attn_implementation: transformers' name of it, such as ``eager``. None: its default.
        output_hidden_states: Accepted and ignored: ``layer_mapping`` says which layers are read.

    Raises:
        FileNotFoundError: If the directory or its config.json does not exist.
        ValueError: If config.json is malformed, asks for remote code, does not fit the task, or the
            model has not the blocks and the head that its config describes.
    """
    # Here, because runs of torchtune's decoders need it not, and it takes a while to import.
    from accelerate import init_empty_weights

    config, task = read_auto_config(checkpoint_dir, task, num_labels)
    auto = getattr(transformers, AUTO_CLASSES[task])
    # Parameters go to the meta device as they are made. Buffers stay: no file holds all of them.
    with torch.device("cpu"), init_empty_weights(include_buffers=False), quiet():
        module = auto.from_config(
            config, dtype=torch.get_default_dtype(), attn_implementation=attn_implementation
        )
    module.tie_weights()  # not above, where every name gets a parameter of its own
    return TransformersModel(module, task)


def lora_auto_model(
    checkpoint_dir: str | Path,
    lora_target_modules: str | Sequence[str] = "all-linear",
    lora_rank: int = 8,
    lora_alpha: float = 16,
    lora_dropout: float = 0.0,
    task: str | None = None,
    num_labels: int | None = None,
    attn_implementation: str | None = None,
    output_hidden_states: bool = False,
) -> TransformersModel:
    """The same with LoRA by PEFT, which is trained instead; a classifier's head is trained whole.

    Args:
        checkpoint_dir: See `auto_model`.
        lora_target_modules: ``all-linear`` (every linear layer of the blocks), or names of modules
            as PEFT takes them, such as ``[q_proj, v_proj]``.
        lora_rank: Rank r of the update B·A.
        lora_alpha: The update is scaled by alpha / rank.
        lora_dropout: Dropout before A.
        task: See `auto_model`.
        num_labels: See `auto_model`.
        attn_implementation: See `auto_model`.
        output_hidden_states: See `auto_model`.

    Raises:
        FileNotFoundError: See `auto_model`.
        ValueError: See `auto_model`; or if a target is no linear layer of the model.
    """
    from hf_models.transformers_model.lora import add_lora

    model = auto_model(checkpoint_dir, task, num_labels, attn_implementation)
    add_lora(model, lora_target_modules, lora_rank, lora_alpha, lora_dropout)
    return model
