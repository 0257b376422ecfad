"""A packed batch has the losses and gradients of its documents, each in a row of its own."""

import json

import pytest
import tiny
import torch
from official_tasks import write_task

import hf_models
from kd_data import collate, lm_eval_task, mixture, prompt_completion_dataset
from kd_losses import ForwardKLLoss
from kd_teachers import Live
from kd_training.objective.distribution import DistributionTerm
from kd_training.objective.labels import LabelTerm
from kd_training.objective.layers import LayerTerm
from kd_training.objective.objective import Objective
from layer_mapping import CosineLoss, LayerMatcher

PAIRS = [(0, 2), (1, 5)]
ROWS = [{"prompt": " ".join(s.split()[:3]), "completion": s[-12:]} for s in tiny.SENTENCES]
TASK = {
    "output_type": "generate_until",
    "training_split": "train",
    "validation_split": "validation",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "completion",
}


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    return tiny.make_tiny_run(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tokenizer(tiny_run):
    return hf_models.tokenizer(tiny_run.directories["teacher"], max_seq_len=96)


@pytest.fixture(scope="module")
def builders(tmp_path_factory, tokenizer):
    """Each of our datasets, still to be told whether to pack."""
    directory = tmp_path_factory.mktemp("data")
    file = directory / "rows.json"
    file.write_text(json.dumps(ROWS))
    write_task(directory, "local", ROWS, **TASK)

    def pairs(packed):
        return prompt_completion_dataset(tokenizer, file, packed=packed)

    def task(packed):
        return lm_eval_task(tokenizer, "local", include_path=directory, packed=packed)

    def mixed(packed):
        return mixture(tokenizer, [pairs(False), task(False)], [2, 1], packed=packed)

    return {"prompt_completion": pairs, "lm_eval": task, "mixture": mixed}


def decoder(directory):
    with torch.device("meta"):
        model = hf_models.decoder(directory)
    weights = hf_models.HFCheckpointer(directory).load_checkpoint()["model"]
    hf_models.load_weights(model, weights, "cpu", torch.float32)
    return model


def losses_and_gradient(tiny_run, samples, scope):
    """Per part: the sum and how many positions it is over; and the gradient of the total."""
    student = hf_models.DecoderModel(decoder(tiny_run.directories["student"]))
    frozen = decoder(tiny_run.directories["teacher"]).requires_grad_(False)
    matcher = LayerMatcher(PAIRS, CosineLoss(), 32, 32)
    terms = [
        LabelTerm("ce"),
        DistributionTerm("kd", ForwardKLLoss(), scope, "kd"),
        LayerTerm("ir", "decoder", matcher, lambda _: PAIRS, scope),
        DistributionTerm("prompt_kd", ForwardKLLoss(), "prompt", "prompt"),
    ]
    weights = {"ce": 1.0, "kd": 1.0, "ir": 3.0, "prompt_kd": 1.0}
    objective = Objective(student, Live(hf_models.DecoderModel(frozen)), terms, weights)
    batch = collate(samples, pad_id=0)
    counts = objective.counts(batch)
    sums = objective(batch, counts)
    sums.total.backward()
    gradient = torch.cat(
        [p.grad.flatten() for p in student.module.parameters() if p.grad is not None]
    )
    return sums.parts, counts, gradient


@pytest.mark.parametrize("name", ["prompt_completion", "lm_eval", "mixture"])
@pytest.mark.parametrize("scope", ["labels", "all"])
def test_packed_is_unpacked(tiny_run, builders, name, scope):
    plain, packed = (list(builders[name](packed)) for packed in (False, True))
    assert 1 < len(packed) < len(plain)
    assert {len(row["tokens"]) for row in packed} == {96}

    parts, counts, gradient = losses_and_gradient(tiny_run, plain, scope)
    assert (parts > 0).all()
    packed_parts, packed_counts, packed_gradient = losses_and_gradient(tiny_run, packed, scope)
    assert packed_counts.tolist() == counts.tolist()
    for part, (value, expected) in enumerate(zip(packed_parts, parts, strict=True)):
        assert value.item() == pytest.approx(expected.item(), rel=1e-5), part
    assert ((packed_gradient - gradient).norm() / gradient.norm()).item() < 1e-5
