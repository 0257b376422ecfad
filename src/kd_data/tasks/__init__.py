"""Samples to a batch, a function for each task. The only place where labels are shifted."""

from kd_data.tasks.causal_lm import collate
from kd_data.tasks.seq2seq_lm import collate_seq2seq
from kd_data.tasks.sequence_classification import collate_classification

__all__ = ["collate", "collate_classification", "collate_seq2seq"]
