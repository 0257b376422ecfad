"""The same own texts in any micro-batches, on any number of ranks, and in a run that goes on."""

import shutil
from pathlib import Path
from unittest import mock

import pytest
from omegaconf import OmegaConf
from parity import logged_differences, weight_difference
from processes import Processes
from ranks import on_ranks
from recorded_generator import recorded
from resuming import check_same, records
from tiny import SENTENCES, save_texts

from hf_models.ends import write_end_tokens
from kd_config.check import check_config
from kd_training import OneDevice, run
from kd_training.many_devices import make_sharded

PARITY = 1e-5
SPLITS = {"one": (4, 1), "two": (2, 2), "four": (1, 4)}  # micro-batches of a step
RANKS = [(2, True), (2, False), (4, True)]  # how many, and whether the weights are gathered


def config(tiny_run, root: Path, batch_size: int, accumulation: int, gather: bool = True):
    """Steps of four texts of unequal length, written in half of them."""
    cfg = OmegaConf.create(tiny_run.config(root))
    root.mkdir(parents=True, exist_ok=True)
    cfg.dataset.data_files = str(
        save_texts(root / "texts.jsonl", SENTENCES + [f"So: {one}" for one in SENTENCES])
    )
    cfg.update(batch_size=batch_size, gradient_accumulation_steps=accumulation, epochs=2)
    cfg.optimizer = {"_component_": "torch.optim.SGD", "lr": 0.1}
    cfg.save_every_n_steps = 1
    cfg.on_policy = {
        "fraction": 0.7,
        "max_new_tokens": 24,
        "prompt_tokens": 6,
        "log_texts_every_n_steps": 1,
        "generator": {
            "_component_": "recorded_generator.Recording",
            "file": str(root / "written.jsonl"),
            "gather": gather,
        },
    }
    cfg.dataset_val = cfg.dataset
    # Many tokens end a text, or those of a random model would never end.
    student = root / "student"
    shutil.copytree(cfg.model.checkpoint_dir, student)
    write_end_tokens(student, range(0, 320, 16))
    cfg.model.checkpoint_dir = cfg.checkpointer.checkpoint_dir = str(student)
    return check_config(cfg)


def train(cfg, placement):
    with mock.patch("kd_training.loop.plot_losses"):
        run(cfg, placement)


def on_rank(rank, configs):
    for text in configs:
        cfg = OmegaConf.create(text)
        train(cfg, make_sharded(cfg))


@pytest.fixture(scope="module")
def plain(tiny_run, tmp_path_factory):
    """On one device, four texts at once."""
    root = tmp_path_factory.mktemp("own_text")
    train(config(tiny_run, root, 4, 1), OneDevice("cpu"))
    return root


def assert_alike(root: Path, plain: Path) -> None:
    assert recorded(root / "written.jsonl") == recorded(plain / "written.jsonl")
    logged = logged_differences(records(root / "out"), records(plain / "out"))
    assert max(logged.values()) < PARITY
    assert weight_difference(root / "out", plain / "out", plain / "student") < PARITY


def test_texts_are_written_of_many_lengths(plain):
    texts = recorded(plain / "written.jsonl")
    assert len({len(completion) for _, _, completion in texts}) > 3
    assert len({seed for seed, _, _ in texts}) == len(texts), "each once"


@pytest.mark.parametrize("split", SPLITS)
def test_any_micro_batches(tiny_run, plain, tmp_path, split):
    train(config(tiny_run, tmp_path, *SPLITS[split]), OneDevice("cpu"))
    assert_alike(tmp_path, plain)


@pytest.mark.parametrize("key", ["enable_activation_checkpointing", "compile"])
def test_what_changes_how_blocks_run(tiny_run, plain, tmp_path, key, monkeypatch):
    monkeypatch.setenv("TORCH_COMPILE_BACKEND", "aot_eager")
    cfg = config(tiny_run, tmp_path, 4, 1)
    cfg[key] = True
    train(cfg, OneDevice("cpu"))
    assert_alike(tmp_path, plain)


@pytest.mark.parametrize(("ranks", "gather"), RANKS)
def test_any_number_of_ranks(tiny_run, plain, tmp_path, ranks, gather):
    cfg = config(tiny_run, tmp_path, 4 // ranks, 1, gather)
    on_ranks(ranks, str(tmp_path / "meeting"), on_rank, [OmegaConf.to_yaml(cfg)])
    assert_alike(tmp_path, plain)


def test_killed_while_it_writes_a_run_goes_on_to_the_same_end(tiny_run, plain, tmp_path):
    cfg = OmegaConf.to_container(config(tiny_run, tmp_path, 4, 1))
    processes = Processes(tmp_path / "log")
    place = "hf_models.torchtune_decoder.generate._Batch.write_tokens"
    assert processes.finish(cfg, killed_in=place, killed_at=40) == -9, processes.text()
    cfg["resume_from_checkpoint"] = True
    assert processes.finish(cfg, killed_in=place, killed_at=40) == -9, processes.text()
    assert processes.finish(cfg) == 0, processes.text()
    check_same(tmp_path / "out", plain / "out")
    read = [(root / "out" / "logs" / "samples.jsonl").read_text() for root in (tmp_path, plain)]
    assert read[0] == read[1]
