"""Metrics of each task, by the libraries that everybody quotes.

Classification: accuracy, F1 and Matthews' correlation by scikit-learn. Generated text: BLEU and
chrF by sacrebleu. Causal language models: perplexity.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch.utils.data import DataLoader
from tqdm import tqdm

from hf_models.model import Model
from kd_data import Batch
from kd_training.preflight.weights import summed_cross_entropy

Scores = dict[str, float]  # by metric, its standard error as <metric>_stderr


def classification(model: Model, loader: DataLoader, device: torch.device) -> Scores:
    """Accuracy, F1 (of class 1 where there are two, else the mean over classes) and Matthews'."""
    predicted: list[int] = []
    labels: list[int] = []
    for batch in _batches(loader, device):
        logits = model.head().logits(model.view(batch.inputs).hidden)
        predicted += logits.argmax(-1).flatten().tolist()
        labels += batch.labels.flatten().tolist()
    accuracy = accuracy_score(labels, predicted)
    average = "binary" if model.facts.classes == 2 else "macro"
    return {
        "accuracy": accuracy,
        "accuracy_stderr": math.sqrt(accuracy * (1 - accuracy) / max(len(labels) - 1, 1)),
        "f1": f1_score(labels, predicted, average=average, zero_division=0),
        "matthews": matthews_corrcoef(labels, predicted),
    }


def perplexity(model: Model, loader: DataLoader, device: torch.device, ignore: int) -> Scores:
    """``exp`` of the mean cross-entropy of the labels, which is given too, in nats."""
    total = count = 0.0
    for batch in _batches(loader, device):
        one, labels = summed_cross_entropy(model, batch.inputs, batch.labels, ignore)
        total, count = total + one, count + labels
    mean = total / max(count, 1)
    return {"cross_entropy": mean, "perplexity": math.exp(mean)}


def generation(
    model: Model,
    loader: DataLoader,
    device: torch.device,
    tokenizer: Any,
    references: Sequence[str],
    num_beams: int,
    max_new_tokens: int,
) -> Scores:
    """BLEU and chrF of what the model's own beam search writes."""
    # Takes a second to import, and only this needs it.
    from sacrebleu.metrics import BLEU, CHRF

    module: Any = model.module
    written: list[str] = []
    for batch in _batches(loader, device):
        found = module.generate(
            input_ids=batch.inputs["input_ids"],
            attention_mask=batch.inputs["attention_mask"],
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            max_length=None,
        )
        written += [
            tokenizer.decode(row, skip_special_tokens=True).strip() for row in found.tolist()
        ]
    metrics = {"bleu": BLEU(), "chrf": CHRF()}
    return {
        name: float(metric.corpus_score(written, [list(references)]).score)
        for name, metric in metrics.items()
    }


def _batches(loader: DataLoader, device: torch.device) -> Iterator[Batch]:
    for batch in tqdm(loader, desc="evaluate", leave=False, dynamic_ncols=True):
        yield batch.to(device)
