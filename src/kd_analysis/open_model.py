"""A finished model, as whoever looks at it needs it."""

from pathlib import Path

import torch
from torchtune import training

from hf_models.loading import load
from hf_models.transformers_model.builders import auto_model
from hf_models.transformers_model.model import TransformersModel


def open_model(
    directory: str | Path, task: str, device: torch.device, dtype: str
) -> TransformersModel:
    """The frozen model of a directory in eval mode, whatever builder has trained it.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the directory is damaged, or its model not for the task.
    """
    directory = Path(directory)
    with training.set_default_dtype(training.get_dtype(dtype, device=device)):
        model = auto_model(directory, task)
    for note in model.layout.check(directory, None):
        print(f"note: {note}")
    load(model, model.layout.read(directory, None), device)
    model.layout.set_habits(model.module, directory)
    model.module.eval().requires_grad_(False)
    return model
