"""Datasets and collation: a sample is ``tokens`` and unshifted ``labels``, as in torchtune."""

from kd_data.collate import collate
from kd_data.prompt_completion import prompt_completion_dataset

__all__ = ["collate", "prompt_completion_dataset"]
