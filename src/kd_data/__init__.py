"""Datasets and batches: a sample is ``tokens`` and unshifted ``labels``, as in torchtune."""

from kd_data.batch import Batch
from kd_data.datasets.classification import classification_dataset
from kd_data.datasets.lm_eval_task import lm_eval_task
from kd_data.datasets.mixture import mixture
from kd_data.datasets.prompt_completion import prompt_completion_dataset
from kd_data.datasets.seq2seq import seq2seq_dataset
from kd_data.tasks import collate

__all__ = [
    "Batch",
    "classification_dataset",
    "collate",
    "lm_eval_task",
    "mixture",
    "prompt_completion_dataset",
    "seq2seq_dataset",
]
