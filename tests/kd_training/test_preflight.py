"""What the plan says about memory."""

import pytest

from kd_losses.chunked.chunk_size import chunk_rows
from kd_teachers import live_models
from kd_training.preflight.weights import check_weights

FP32 = 4


@pytest.mark.parametrize("num_chunks", [None, 1, 4])
def test_the_logits_are_those_of_one_chunk_of_both_models(make_run, num_chunks):
    loss = {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"}
    loaded = make_run({"loss": num_chunks and loss | {"num_output_chunks": num_chunks}})
    vocab_size = loaded.run.student.module.tok_embeddings.weight.shape[0]
    rows = chunk_rows(vocab_size, loaded.run.placement.device)
    if num_chunks is not None:
        rows = 2 * 64 // num_chunks  # samples of at most 64 tokens
    assert loaded.estimate().logits == rows * vocab_size * 2 * FP32


def test_the_weights_are_counted_with_gradients_and_two_states_of_adam(make_run):
    loaded = make_run()
    parameters = list(loaded.run.student.module.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    held = sum(p.numel() for p in parameters) + 3 * trained
    memory = loaded.estimate()
    assert memory.student == held * FP32
    assert (
        memory.teacher
        == sum(p.numel() for p in loaded.run.teacher.model.module.parameters()) * FP32
    )
    assert memory.gathered == 0
    assert "memory, estimated" in memory.line(loaded.run.placement.device)


def test_the_first_look_at_the_weights_takes_any_mark_of_positions_without_a_target(make_run):
    loss = {"_component_": "torch.nn.CrossEntropyLoss", "ignore_index": -1}
    loaded = make_run({"loss": loss, "kd_loss.ignore_index": -1})
    batch = loaded.run.source.first_batch()
    assert (batch.labels == -1).any()
    run = loaded.run
    assert isinstance(check_weights(run.student, live_models(run.teacher), batch, -1), list)
