"""`tune run kd_distributed` in processes of its own: a rank that breaks, going on, two nodes."""

import pytest
import yaml
from processes import GUARD, launch
from resuming import checkpoints, records
from safetensors.torch import load_file
from torch.distributed import TCPStore
from torch.utils.data import DistributedSampler

from kd_training.checkpoint.files import newest_state

STEPS, SEED = 4, 5
NUM_SAMPLES = 400


def read_last(rank):
    """What a rank reads in the last step; not all is among the hundred whose lengths are known."""
    sampler = DistributedSampler(range(NUM_SAMPLES), num_replicas=2, rank=rank, seed=SEED)
    return max(list(sampler)[2 * STEPS - 2 : 2 * STEPS])


BROKEN, AWAITED = read_last(1), read_last(0)


@pytest.fixture
def config(config_file):
    """Four steps of 4 samples on two ranks, with a checkpoint after each."""
    config = yaml.safe_load(config_file.read_text())
    config |= {
        "dataset": {"_component_": "uneven_samples.UnevenSamples", "size": NUM_SAMPLES},
        "seed": SEED,
        "max_steps_per_epoch": STEPS,
        "batch_size": 2,
        "gradient_accumulation_steps": 1,
        "num_workers": 1,
        "save_every_n_steps": 1,
        "keep_last_n": 9,
    }
    config_file.write_text(yaml.safe_dump(config))
    return config_file


def whole_run(tune_run, config, root):
    """The output of the same steps on one device, without a break."""
    output = root / "whole"
    code, _, err = tune_run("kd_single_device", config, f"output_dir={output}", "batch_size=4")
    assert code == 0, err
    return output


def check_same_run(actual, expected):
    """The same numbers at every step and the same student, to 1e-5."""
    ours, theirs = records(actual), records(expected)
    assert [r["step"] for r in ours] == list(range(1, STEPS + 1))
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-8)
    students = [load_file(d / "epoch_0" / "model.safetensors") for d in (actual, expected)]
    for name, weight in students[1].items():
        assert (students[0][name] - weight).norm() < 1e-5 * weight.norm()


@pytest.fixture
def broken_run(config, tmp_path):
    """What a run of two ranks has left whose rank 1 raises in the last step.

    Rank 0 would then wait forever: that the job ends at all shows that it does not.
    """
    assert min(BROKEN, AWAITED) >= 100
    process = launch("--nproc_per_node", 2, "kd_distributed", "--config", config,
                     f"dataset.fails_at={BROKEN}", f"dataset.waits_at={AWAITED}")  # fmt: skip
    _, err = process.communicate(timeout=GUARD)
    assert process.returncode == 1, err
    first_to_fail = err.rpartition("Root Cause")[2]
    assert "rank      : 1 " in first_to_fail
    assert f"sample {BROKEN} is broken" in first_to_fail, "the last lines say why"
    return tmp_path / "out"


def test_a_broken_rank_ends_the_job_and_one_device_goes_on(broken_run, config, tune_run, tmp_path):
    assert checkpoints(broken_run) == [1, 2, 3]
    newest, damaged = newest_state(broken_run)
    assert (newest, damaged) == (broken_run / "recipe_state" / "step_3", [])
    assert not (broken_run / "epoch_0").exists()
    code, out, err = tune_run(
        "kd_single_device", config, "batch_size=4", "resume_from_checkpoint=true"
    )
    assert code == 0, err
    assert f"resumed from {newest}" in out
    check_same_run(broken_run, whole_run(tune_run, config, tmp_path))


@pytest.mark.slow
def test_four_ranks_go_on_from_two(broken_run, config, tune_run, tmp_path):
    process = launch("--nproc_per_node", 4, "kd_distributed", "--config", config,
                     "batch_size=1", "resume_from_checkpoint=true")  # fmt: skip
    _, err = process.communicate(timeout=GUARD)
    assert process.returncode == 0, err
    check_same_run(broken_run, whole_run(tune_run, config, tmp_path))


@pytest.mark.slow
def test_two_nodes_meet_at_an_endpoint(config, tune_run, tmp_path):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meeting = ["--rdzv_backend", "c10d", "--rdzv_id", "kd", "--rdzv_conf", "is_host=false"]
    nodes = [
        launch("--nnodes", 2, "--nproc_per_node", 1, *meeting,
               "--rdzv_endpoint", f"127.0.0.1:{store.port}", "kd_distributed", "--config", config)
        for _ in range(2)
    ]  # fmt: skip
    for node in nodes:
        _, err = node.communicate(timeout=GUARD)
        assert node.returncode == 0, err
    check_same_run(tmp_path / "out", whole_run(tune_run, config, tmp_path))


def test_without_a_launcher_the_recipe_names_it(tune_run, config):
    code, _, err = tune_run("kd_distributed", config)
    assert code == 1
    assert "kd_distributed needs the launcher: tune run --nproc_per_node N kd_distributed" in err
