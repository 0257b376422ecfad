"""FSDP2 on CPU processes against one device: same numbers, same weights, same files.

`pytest -s` prints a table of the largest relative differences; it also goes to out/parity.md.
"""

import json
import shutil
from pathlib import Path

import pytest
import sharded_cases
import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from parity import as_table, logged_differences, weight_difference
from ranks import on_ranks
from resuming import records
from safetensors.torch import load_file
from sharded_cases import (
    CASES,
    SPOILT,
    case_config,
    run_directory,
    train,
    train_cases,
    train_sharded,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from kd_config.check import check_config
from kd_training import OneDevice
from kd_training.checkpoint.files import newest_state
from kd_training.many_devices import make_sharded

PARITY = 1e-5
# A bf16 number has 8 bits: one rounding is up to 2^-8 = 4e-3 off. The loss is a mean over a hundred
# tokens, the gradient's norm one over many entries, and Adam may turn around what is near 0.
BF16_PARITY = {"loss": 2e-3, "gradient": 2e-2, "weights": 2e-2}
# Each is part of another case, which `make test` runs.
SLOW = ["accumulation", "clipping", "untied head", "all weights", "bf16, all weights"]
COMPILED = "compile"  # dynamo takes a minute for its graphs
QUICK = [case for case in CASES if case not in (*SLOW, COMPILED)]
ON_ONE_RANK = ["projections", "all weights, untied head", "cpu offload"]
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Where the models are and the runs go."""
    root = tmp_path_factory.mktemp("sharded")
    sharded_cases.make_models(root)
    return root


@pytest.fixture(scope="module")
def sharded_runs(root):
    """Runs cases on so many ranks, once; the quick ones if none are named."""
    done = set()

    def run(ranks, cases=(*QUICK, *SPOILT)):
        if (ranks, cases) not in done:
            meeting = str(root / f"meeting_{len(done)}")
            on_ranks(ranks, meeting, train_cases, root, cases)
            done.add((ranks, cases))
        return root

    return run


@pytest.fixture(scope="module")
def table():
    """Rows of the parity table; shown and kept at the end."""
    rows = {}
    yield rows
    text = as_table(rows)
    print(f"\n{text}")
    (REPOSITORY / "out").mkdir(exist_ok=True)
    (REPOSITORY / "out" / "parity.md").write_text(text)


def one_device(root, case):
    """The directory of the case's run without a process group."""
    directory = run_directory(root, case, 0)
    if not directory.exists():
        train(case_config(root, case, 0), OneDevice("cpu"))
    return directory


def check_parity(root, case, ranks, table):
    expected, actual = one_device(root, case), run_directory(root, case, ranks)
    worst = logged_differences(records(actual), records(expected))
    worst["weights"] = weight_difference(actual, expected, student_of(root, case))
    table[ranks, case] = worst
    allowed = BF16_PARITY if case.startswith("bf16") else dict.fromkeys(worst, PARITY)
    assert all(worst[name] < allowed[name] for name in worst), worst


def student_of(root, case):
    return Path(case_config(root, case, 0).model.checkpoint_dir)


@pytest.mark.parametrize("case", QUICK)
def test_two_ranks_are_one_device(sharded_runs, table, case):
    check_parity(sharded_runs(2), case, 2, table)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_two_ranks_are_one_device_in_the_simpler_cases(sharded_runs, table, case):
    check_parity(sharded_runs(2, tuple(SLOW)), case, 2, table)


@pytest.mark.slow
@pytest.mark.parametrize("case", [*QUICK, *SLOW])
def test_four_ranks_are_one_device(sharded_runs, table, case):
    check_parity(sharded_runs(4, (*QUICK, *SLOW)), case, 4, table)


@pytest.mark.slow
def test_compiled_layers_on_two_ranks_are_those_of_one_device(sharded_runs, table):
    check_parity(sharded_runs(2, (COMPILED,)), COMPILED, 2, table)


@pytest.mark.parametrize("case", ON_ONE_RANK)
def test_one_rank_is_one_device(root, table, case):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        train_sharded(root, case)
    finally:
        dist.destroy_process_group()
    check_parity(root, case, 1, table)


def test_offloaded_activations_on_a_rank(root, fetched):
    case = "activation checkpointing"
    changes = {"enable_activation_offloading": True, "output_dir": str(root / "offloaded")}
    cfg = check_config(OmegaConf.merge(case_config(root, case, 1), changes))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        train(cfg, make_sharded(cfg))
    finally:
        dist.destroy_process_group()
    assert fetched
    expected = one_device(root, case)
    worst = logged_differences(records(root / "offloaded"), records(expected))
    assert max(worst.values()) < PARITY
    assert weight_difference(root / "offloaded", expected, student_of(root, case)) < PARITY


def notes(root, case, ranks=2):
    directory = run_directory(root, case, ranks)
    return [json.loads((directory / f"rank_{r}.json").read_text()) for r in range(ranks)]


@pytest.mark.parametrize("case", ["lora", "projections", "all weights, untied head"])
def test_weights_are_read_once_and_no_rank_holds_a_whole_model(sharded_runs, case):
    first, second = notes(sharded_runs(2), case)
    assert (first["reads"], second["reads"]) == (2, 0), "student and teacher, by rank 0 alone"
    for rank in (first, second):
        assert rank["on_meta"] == [True, True]
        assert rank["share"] == pytest.approx([0.5, 0.5], abs=0.02)


def test_a_whole_teacher_is_read_by_every_rank(sharded_runs):
    notes_by_rank = notes(sharded_runs(2), "whole teacher")
    assert [len(rank["share"]) for rank in notes_by_rank] == [1, 1], "only the student is sharded"


def test_transformers_opens_what_two_ranks_have_merged(sharded_runs):
    root = sharded_runs(2)
    directories = [run_directory(root, "lora", 2), one_device(root, "lora")]
    tokens = AutoTokenizer.from_pretrained(directories[0] / "epoch_0")(
        "A class definition makes an object.", return_tensors="pt"
    ).input_ids
    logits = [
        AutoModelForCausalLM.from_pretrained(d / "epoch_0")(tokens).logits for d in directories
    ]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-5, atol=1e-5)


def check_going_on_alone(root, case, output):
    """One device goes on in ``output``, and ends as one that has done it all."""
    changes = {"output_dir": str(output), "resume_from_checkpoint": True}
    train(OmegaConf.merge(case_config(root, case, 0), changes), OneDevice("cpu"))
    expected = one_device(root, case)
    worst = logged_differences(records(output), records(expected))
    assert max(worst.values()) < PARITY
    assert weight_difference(output, expected, root / "student") < PARITY


def test_one_device_goes_on_from_two_ranks(sharded_runs, tmp_path):
    root = sharded_runs(2)
    output = tmp_path / "out"
    shutil.copytree(run_directory(root, "lora", 2), output)
    for step in (4, 5):
        shutil.rmtree(output / "recipe_state" / f"step_{step}")
    check_going_on_alone(root, "lora", output)


def test_nan_on_one_rank_stops_all_of_them(sharded_runs):
    root = sharded_runs(2)
    for rank, note in enumerate(notes(root, "spoilt")):
        assert note["error"].startswith("step 1: ir/s0-t1 is nan; no weight was changed")
        dump = run_directory(root, "spoilt", 2) / f"logs/nonfinite_step_1_rank_{rank}.safetensors"
        assert str(dump) in note["error"]
        assert {"0.tokens", "0.labels"} <= load_file(dump).keys()
    assert newest_state(run_directory(root, "spoilt", 2)) == (None, [])


def test_nan_on_one_rank_is_passed_over_by_all_of_them(sharded_runs):
    root = sharded_runs(2)
    assert all("error" not in note for note in notes(root, "spoilt, skipped"))
    logged = records(run_directory(root, "spoilt, skipped", 2))
    assert logged[0]["skipped_steps"] == 1
    assert [r["step"] for r in logged if "total" in r] == [2, 3, 4, 5]


def test_best_students_are_measured_alike_on_any_number_of_ranks(sharded_runs):
    root = sharded_runs(2)
    states = [
        json.loads((newest_state(directory)[0] / "state.json").read_text())
        for directory in (run_directory(root, "validation", 2), one_device(root, "validation"))
    ]
    first, second = (state["progress"]["best_by"] for state in states)
    assert first == second
    assert len(first) == 64


def test_a_best_student_without_room_stops_all_ranks_behind_a_checkpoint(sharded_runs, tmp_path):
    """Only one of them writes it; one device, with room, makes up for it and goes on."""
    root = sharded_runs(2)
    spoilt = run_directory(root, "no room", 2)
    newest = spoilt / "recipe_state" / "step_2"
    for note in notes(root, "no room"):
        assert note["error"].startswith("the best student could not be written: ")
        assert "No space left" in note["error"]
        assert note["error"].endswith(f"resume_from_checkpoint=true to go on from {newest}")
    output = tmp_path / "out"
    shutil.copytree(spoilt, output)
    check_going_on_alone(root, "validation", output)
