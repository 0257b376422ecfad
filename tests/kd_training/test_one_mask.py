"""Micro-batches go to the device one by one, and a mask lives as long as its micro-batch."""

import gc
import weakref

import torch

from hf_models.torchtune_decoder.attention_mask import dense_mask
from kd_data.transfer import one_at_a_time

CPU = torch.device("cpu")


def packed_step(make_run, accumulation):
    """A run on packed rows, and the micro-batches of a step."""
    loaded = make_run({"dataset.packed": True, "batch_size": 1,
                            "gradient_accumulation_steps": 1})  # fmt: skip
    loader = loaded.run.source.loader
    rows = [loader.dataset[i % len(loader.dataset)] for i in range(accumulation)]
    return loaded, [loader.collate_fn([row]) for row in rows]


def test_one_mask_at_a_time_and_both_models_share_it(make_run, monkeypatch):
    loaded, micro_batches = packed_step(make_run, 4)
    masks, seen = [], {"student": [], "teacher": []}

    def watched(documents):
        gc.collect()
        assert all(mask() is None for mask in masks), "the one before is still there"
        mask = dense_mask(documents)
        masks.append(weakref.ref(mask))
        return mask

    monkeypatch.setattr("hf_models.torchtune_decoder.attention_mask.dense_mask", watched)
    # As elsewhere than on a CPU, where texts are read one by one.
    monkeypatch.setattr("hf_models.torchtune_decoder.model.applies", lambda *_: False)
    models = {"student": loaded.run.student, "teacher": loaded.run.teacher.model}
    for name, ids in seen.items():
        models[name].module.register_forward_pre_hook(
            lambda _, __, kwargs, ids=ids: ids.append(masks[-1]() is kwargs["mask"]),
            with_kwargs=True,
        )
    loaded.step(micro_batches, 1)
    assert seen == {"student": [True] * 4, "teacher": [True] * 4}
    assert len(masks) == 4


def test_a_step_of_packed_rows_is_counted_on_the_host(make_run, monkeypatch):
    """All micro-batches together are never on the device."""
    loaded, micro_batches = packed_step(make_run, 3)
    events = []
    counts = loaded.run.objective.counts

    def count(batch):
        events.append("counted")
        assert any(batch is one for one in micro_batches), "it has been copied before"
        return counts(batch)

    def transfer(batches, device):
        for batch in one_at_a_time(batches, device):
            events.append("moved")
            yield batch

    monkeypatch.setattr(loaded.run.objective, "counts", count)
    monkeypatch.setattr("kd_training.step.one_at_a_time", transfer)
    loaded.step(micro_batches, 1)
    assert events == ["counted"] * 3 + ["moved"] * 3
