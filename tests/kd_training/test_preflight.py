"""What the plan says about memory."""

import pytest

from kd_losses.chunked.chunk_size import chunk_rows
from kd_training.preflight import estimates

FP32 = 4


def estimate(trainer):
    models = trainer.student, trainer.teacher
    return estimates.estimate_memory(trainer.cfg, *models, trainer.dtype, trainer.placement)


@pytest.mark.parametrize("num_chunks", [None, 1, 4])
def test_the_logits_are_those_of_one_chunk_of_both_models(make_trainer, num_chunks):
    loss = {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"}
    trainer = make_trainer({"loss": loss | {"num_output_chunks": num_chunks or 8}})
    if num_chunks is None:
        trainer.cfg.loss = None
    vocab_size = trainer.student.tok_embeddings.weight.shape[0]
    rows = chunk_rows(vocab_size, trainer.placement.device)
    if num_chunks is not None:
        rows = 2 * 64 // num_chunks  # samples of at most 64 tokens
    assert estimate(trainer).logits == rows * vocab_size * 2 * FP32


def test_the_weights_are_counted_with_gradients_and_two_states_of_adam(make_trainer):
    trainer = make_trainer()
    parameters = list(trainer.student.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    held = sum(p.numel() for p in parameters) + 3 * trained
    memory = estimate(trainer)
    assert memory.student == held * FP32
    assert memory.teacher == sum(p.numel() for p in trainer.teacher.parameters()) * FP32
    assert memory.gathered == 0
    assert "memory, estimated" in memory.line(trainer.placement.device)
