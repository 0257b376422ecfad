"""Runs on text that the student writes itself."""

import pytest

OWN = {"on_policy": {"max_new_tokens": 8, "prompt_tokens": 4, "log_texts_every_n_steps": 1}}


def test_a_run_on_own_text(make_run):
    loaded = make_run(OWN | {"epochs": 1, "dataset_val": "${dataset}"})
    loaded.train()
    directory = loaded.run.records.directory
    print((directory / "logs" / "metrics.jsonl").read_text())
    print((directory / "logs" / "samples.jsonl").read_text()[:1500])
    assert False
