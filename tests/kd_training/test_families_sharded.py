"""Two ranks give what one device gives, for models of transformers too."""

import json
import os
from pathlib import Path
from unittest import mock

import pytest
from families import family_config, save_family
from omegaconf import OmegaConf
from parity import logged_differences, weight_difference
from ranks import on_ranks
from resuming import records

from kd_config.check import check_config
from kd_training import OneDevice, run
from kd_training.many_devices import make_sharded

PARITY = 1e-5
LORA = {"model._component_": "hf_models.lora_auto_model", "model.lora_rank": 4}
STEPS = 5
SLOW = ["bert", "bart, lora", "bloom", "qwen3", "mistral"]
CASES = {
    "bert": {},
    "bert, lora": LORA | {"save_every_n_steps": 2},
    "t5": {"enable_activation_checkpointing": True},
    "bart, lora": LORA | {"teacher_sharding": "none"},
    "bart": {"gradient_accumulation_steps": 2},
    "gemma2": {"clip_grad_norm": 0.5},
    "mixtral, lora": LORA,
    "t5, own text": {"on_policy": {"max_new_tokens": 6}},
    "gpt2, own text": LORA | {"on_policy": {"max_new_tokens": 6, "gather_weights": False}},
    "bloom": {"compile": True},
    "qwen3": {"teacher_model._component_": "hf_models.decoder"},
    "mistral": {"dtype": "bf16"},
}
BF16_PARITY = {"loss": 2e-3, "gradient": 2e-2, "weights": 2e-2}


def config(root, case, ranks):
    """A case's config, with the same global batch for any number of ranks."""
    family = case.partition(",")[0]
    out = root / f"ranks_{ranks}" / case.replace(", ", "_")
    cfg = OmegaConf.create(
        family_config(out, family, root / family / "teacher", root / family / "student")
    )
    cfg.update(batch_size=4, gradient_accumulation_steps=1)
    cfg.optimizer = {"_component_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9}
    cfg.dataset.size = 4 * STEPS
    for key, value in CASES[case].items():
        OmegaConf.update(cfg, key, value, force_add=True)
    cfg.batch_size = 4 // cfg.gradient_accumulation_steps // max(ranks, 1)
    return check_config(cfg)


def train(cfg, placement):
    compiling = mock.patch.dict(os.environ, TORCH_COMPILE_BACKEND="aot_eager")
    with mock.patch("kd_training.loop.plot_losses"), compiling:
        run(cfg, placement)


def train_all(rank, root, cases):
    for case in cases:
        cfg = config(root, case, 2)
        train(cfg, make_sharded(cfg))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Where the models are and the runs go."""
    root = tmp_path_factory.mktemp("sharded_families")
    for family in {case.partition(",")[0] for case in CASES}:
        save_family(root / family / "teacher", family)
        save_family(root / family / "student", family, 1, student=True)
    return root


@pytest.fixture(scope="module")
def on_two_ranks(root):
    """Runs cases on two ranks, once."""
    done = set()

    def run_cases(cases):
        if cases not in done:
            on_ranks(2, str(root / f"meeting_{len(done)}"), train_all, root, cases)
            done.add(cases)

    return run_cases


def compare(root, case):
    """The runs of a case on two ranks and on one device."""
    cfg = config(root, case, 0)
    train(cfg, OneDevice("cpu"))
    expected = Path(cfg.output_dir)
    actual = Path(config(root, case, 2).output_dir)
    worst = logged_differences(records(actual), records(expected))
    before = root / case.partition(",")[0] / "student"
    worst["weights"] = weight_difference(actual, expected, before)
    bound = BF16_PARITY if cfg.dtype == "bf16" else dict.fromkeys(worst, PARITY)
    assert all(value <= bound[name] for name, value in worst.items()), json.dumps(worst)


QUICK = tuple(case for case in CASES if case not in SLOW)


@pytest.mark.parametrize("case", QUICK)
def test_two_ranks_give_what_one_device_gives(root, on_two_ranks, case):
    on_two_ranks(QUICK)
    compare(root, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_two_ranks_give_what_one_device_gives_in_more_cases(root, on_two_ranks, case):
    on_two_ranks((case,))
    compare(root, case)
