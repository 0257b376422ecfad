"""Full disks, signals, kills and numbers that are none: nothing that was saved gets lost."""

import errno
import os
import random
import shutil
import signal
from types import SimpleNamespace

import pytest
import yaml
from processes import GUARD, Processes, launch
from resuming import NUM_STEPS, check_same, checkpoints, distil, everything, records
from safetensors.torch import load_file

from kd_training import OneDevice
from kd_training.checkpoint import files
from kd_training.stop_signal import StopSignal


@pytest.fixture
def processes(tmp_path):
    return Processes(tmp_path / "log.txt")


def make_whole(root, teacher, **changes):
    config = everything(root, teacher) | {"save_every_n_steps": 1} | changes
    assert distil(config) == 0
    return config, root / "out"


@pytest.fixture(scope="module")
def whole(tiny_run, tmp_path_factory):
    """The config of a run with all parts that saves after each step, and its whole output."""
    return make_whole(tmp_path_factory.mktemp("whole"), tiny_run.directories["teacher"])


def snapshot(folder):
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def last_line(text):
    return text.strip().splitlines()[-1]


# --- kill -9


slow = pytest.mark.slow
KILLS = [
    pytest.param("kd_training.checkpoint.files.dcp.save", 3, marks=slow),  # no tensor yet
    ("kd_training.checkpoint.files._describe_files", 3),  # tensors, but no manifest
    ("hf_models.directories.flush_to_disk", 4),  # complete, but not yet at its place
    pytest.param("kd_training.checkpoint.files._remove_others", 3, marks=slow),  # beside too many
    ("hf_models.export.write_json", 1),  # in a student
    pytest.param("kd_training.output.student.write_model_card", 2, marks=slow),  # right after one
    pytest.param("kd_training.output.metrics.Metrics.log", 5, marks=slow),  # not recorded
]


# Every run below changes its output directory more often, however late it is resumed.
MOST_CHANGES = 60


@pytest.mark.parametrize(("where", "at"), KILLS)
def test_killed_at_the_worst_moment(whole, tmp_path, processes, where, at):
    config, expected = whole
    config = config | {"output_dir": str(tmp_path / "out")}
    assert processes.finish(config, killed_in=where, killed_at=at) == -signal.SIGKILL
    assert processes.finish(config | {"resume_from_checkpoint": True}) == 0, processes.text()
    check_same(tmp_path / "out", expected)
    leftovers = [p.name for p in (tmp_path / "out").rglob(".*")]
    assert not leftovers


def kill_at_random(config, processes, output, number, seed):
    """Kill ``number`` runs before some change of their files, then let one finish."""
    moments = random.Random(seed)
    config = config | {"output_dir": str(output), "resume_from_checkpoint": True}
    for _ in range(number):
        moment = moments.randint(1, MOST_CHANGES)
        assert processes.finish(config, killed_before=moment) == -signal.SIGKILL, moment
    assert processes.finish(config) == 0, processes.text()


def test_killed_three_times_at_random(whole, tmp_path, processes):
    config, expected = whole
    kill_at_random(config, processes, tmp_path / "out", number=3, seed=0)
    check_same(tmp_path / "out", expected)


@slow
@pytest.mark.parametrize("seed", [1])
def test_killed_twenty_times_at_random(tiny_run, tmp_path, processes, seed):
    teacher = tiny_run.directories["teacher"]
    config, expected = make_whole(tmp_path / "whole", teacher, epochs=30)
    kill_at_random(config, processes, tmp_path / "out", number=20, seed=seed)
    check_same(tmp_path / "out", expected)


# --- disks


def test_a_disk_that_fills_up_while_a_checkpoint_is_saved(whole, tmp_path, processes):
    """The tensors of the state are the largest file of this run, and one byte is missing."""
    config, expected = whole
    shutil.copytree(expected, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "recipe_state" / f"step_{NUM_STEPS}")
    before = snapshot(tmp_path / "out" / "recipe_state")
    config = config | {"output_dir": str(tmp_path / "out"), "resume_from_checkpoint": True}
    largest = max(len(content) for content in before.values())
    assert processes.finish(config, largest_file=largest - 1) == 1
    line = last_line(processes.text())
    assert line.startswith(f"error: checkpoint {tmp_path / 'out' / 'recipe_state'}/step_12 could")
    assert "earlier ones are untouched; free some space" in line
    assert "Traceback" not in processes.text()
    assert snapshot(tmp_path / "out" / "recipe_state") == before
    assert processes.finish(config) == 0
    check_same(tmp_path / "out", expected)


def test_a_disk_that_fills_up_while_a_student_is_saved(whole, tmp_path, processes):
    """Without layers to match, the exported weights are larger than the state."""
    config, _ = whole
    config = config | {"output_dir": str(tmp_path / "out"), "layer_mapping": "none"}
    config["model"] = config["model"] | {"lora_rank": 1, "apply_lora_to_mlp": False}
    config |= {"epochs": 1, "dataset_val": None, "run_val_every_n_steps": None}
    config["loss_scaling"] = {"enabled": False}
    assert processes.finish(config | {"max_steps_per_epoch": 3}) == 0
    students = [p.stat().st_size for p in (tmp_path / "out").glob("epoch_0/*.safetensors")]
    states = [p.stat().st_size for p in (tmp_path / "out").glob("recipe_state/*/*")]
    assert max(states) < max(students), "the limit must let the states through"
    before = snapshot(tmp_path / "out" / "epoch_0")
    limit = (max(states) + max(students)) // 2
    again = config | {"output_dir": str(tmp_path / "out")}
    shutil.rmtree(tmp_path / "out" / "recipe_state" / "step_3")
    again |= {"resume_from_checkpoint": True, "max_steps_per_epoch": 3}
    assert processes.finish(again, largest_file=limit) == 1
    line = last_line(processes.text())
    assert line.startswith("error: the student of epoch 0 could not be written: "), line
    assert "free some space, then set resume_from_checkpoint=true" in line
    assert "Traceback" not in processes.text()
    assert snapshot(tmp_path / "out" / "epoch_0") == before
    assert checkpoints(tmp_path / "out") == [2, 3]
    assert processes.finish(again) == 0


def test_a_folder_that_takes_no_checkpoint(tune_run, config_file, tmp_path, monkeypatch):
    calls, save = [], files.dcp.save

    def fail_the_second_time(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return save(*args, **kwargs)

    monkeypatch.setattr(files.dcp, "save", fail_the_second_time)
    arguments = ["save_every_n_steps=1", "epochs=2"]
    code, _, err = tune_run("kd_single_device", config_file, *arguments)
    assert code == 1
    assert last_line(err).startswith("error: checkpoint")
    assert os.strerror(errno.EROFS) in last_line(err)
    assert "Traceback" not in err
    assert checkpoints(tmp_path / "out") == [1]
    code, _, err = tune_run(
        "kd_single_device", config_file, *arguments, "resume_from_checkpoint=true"
    )
    assert code == 0, err
    assert [r["step"] for r in records(tmp_path / "out")] == [1, 2, 3, 4]


# --- signals


@pytest.mark.parametrize(
    ("seconds", "code", "saved"), [(1.9, 128 + signal.SIGTERM, [1]), (2.1, -signal.SIGTERM, [])]
)
def test_a_second_signal_ends_a_run_at_once(whole, tmp_path, processes, seconds, code, saved):
    """Both come during the first step, which ends only if they are one request."""
    config, _ = whole
    loss = {"_component_": "faulty_parts.FaultyLoss", "signal_at": [1, 2]}
    config = config | {"output_dir": str(tmp_path / "out"), "kd_loss": loss}
    assert processes.finish(config, clock_step=seconds) == code
    assert processes.text().count("SIGTERM: finishing this step") == 1
    assert checkpoints(tmp_path / "out") == saved


def test_one_ctrl_c_that_arrives_twice_is_one_request(monkeypatch):
    """Once from the terminal and once through the launcher, as the same or another signal."""
    monkeypatch.setattr("kd_training.stop_signal.time", SimpleNamespace(monotonic=lambda: 0.0))
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignal(OneDevice("cpu")) as stop:
        assert stop.agreed() is None
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert stop.agreed() is signal.SIGINT
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@slow
def test_sigterm_to_a_launcher_of_two_ranks(tune_run, config_file, tmp_path):
    """As a cluster's scheduler does it; one device with twice the batch goes on from there."""
    step, epochs = 6, 2
    common = [f"epochs={epochs}", "gradient_accumulation_steps=1"]
    loss = ["kd_loss._component_=faulty_parts.StoppedByLauncher", f"kd_loss.at={step}"]
    launcher = launch("--shutdown-timeout", GUARD, "--nproc_per_node", 2, "kd_distributed",
                      "--config", config_file, *common, *loss, "batch_size=1")  # fmt: skip
    out, err = launcher.communicate(timeout=GUARD)
    assert launcher.returncode != 0
    assert f"SIGTERM after step {step}: saved" in out, err
    assert "tune run --nproc_per_node 2 kd_distributed" in out
    assert checkpoints(tmp_path / "out")[-1] == step
    assert records(tmp_path / "out")[-1]["step"] == step
    common += ["batch_size=2", "resume_from_checkpoint=true"]
    code, out, err = tune_run("kd_single_device", config_file, *common)
    assert code == 0, err
    assert f"step_{step}" in out
    assert [r["step"] for r in records(tmp_path / "out")] == list(range(1, 4 * epochs + 1))


# --- numbers that are none

NOT_FINITE = {
    "kd": ["kd_loss._component_=faulty_parts.FaultyLoss", "kd_loss.nan_at=[6]"],
    "ir/s0-t2": ["ir_loss._component_=faulty_parts.FaultyPairs", "ir_loss.nan_at=9"],
    "grad_norm": ["ir_loss._component_=faulty_parts.FaultyPairs", "ir_loss.nan_gradient_at=12"],
}


@pytest.mark.parametrize("part", NOT_FINITE)
def test_a_non_finite_step_stops_the_run_in_one_line(tune_run, config_file, tmp_path, part):
    common = ["kd_single_device", config_file, "epochs=2", "save_every_n_steps=1"]
    code, _, err = tune_run(*common, *NOT_FINITE[part])
    assert code == 1
    assert last_line(err).startswith(f"error: step 3: {part} is nan; no weight was changed"), err
    assert "skip_nonfinite_steps" in last_line(err)
    assert "Traceback" not in err
    out = tmp_path / "out"
    assert checkpoints(out) == [1, 2]
    assert [r["step"] for r in records(out)] == [1, 2]
    dump = out / "logs" / "nonfinite_step_3_rank_0.safetensors"
    assert dump.stat().st_mode == (out / "config.yaml").stat().st_mode
    kept = load_file(dump)
    assert {name.split(".")[0] for name in kept} == {"0", "1"}
    assert kept["0.tokens"].shape == kept["0.labels"].shape
    assert tune_run(*common, "resume_from_checkpoint=true")[0] == 0
    assert [r["step"] for r in records(out)] == [1, 2, 3, 4]


def test_a_learning_rate_that_destroys_the_weights(tune_run, config_file, tmp_path):
    """Weights beyond fp32's range: the next forward has no finite part left."""
    code, _, err = tune_run("kd_single_device", config_file, "optimizer.lr=1e30", "epochs=2")
    assert code == 1
    assert "error: step 2: " in last_line(err)
    assert "lower the learning rate" in last_line(err)


def test_steps_are_skipped_up_to_the_limit(tune_run, config_file, tmp_path):
    loss = ["kd_loss._component_=faulty_parts.FaultyLoss", "kd_loss.nan_at=[3,6]", "epochs=2"]
    code, out, err = tune_run("kd_single_device", config_file, *loss, "skip_nonfinite_steps=2")
    assert code == 0, err
    assert [line.split(":")[1] for line in out.splitlines() if line.startswith("skipped")] == [
        " step 2",
        " step 3",
    ]
    skipped = [r.get("skipped_steps") for r in records(tmp_path / "out")]
    assert skipped == [None, 1, 2, None]
    code, _, err = tune_run("kd_single_device", config_file, *loss, "skip_nonfinite_steps=1")
    assert code == 1
    assert last_line(err).startswith("error: step 3: kd is nan")
    earlier = yaml.safe_load((tmp_path / "out/previous/1/config.yaml").read_text())
    assert earlier["skip_nonfinite_steps"] == 2
