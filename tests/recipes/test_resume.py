"""A run that was interrupted ends as if it had not been: every number, bit for bit."""

import gc
import hashlib
import json
import multiprocessing
import pickle
import shutil
import signal

import pytest
import torch
import yaml
from resuming import (
    NUM_STEPS,
    check_same,
    checkpoints,
    distil,
    everything,
    records,
    students,
)


@pytest.fixture(scope="module")
def whole(tiny_run, tmp_path_factory):
    """The config of a run with all parts, and the output of running it at one go."""
    root = tmp_path_factory.mktemp("whole")
    config = everything(root, tiny_run.directories["teacher"])
    assert distil(config) == 0
    output = root / "out"
    steps = [r for r in records(output) if "total" in r]
    assert len(steps) == NUM_STEPS
    pairs = {tuple(sorted(k for k in r if k.startswith("ir/"))) for r in steps}
    assert len(pairs) > 1, "the pairs of layers change between epochs"
    assert len({r["weight/kd"] for r in steps}) == NUM_STEPS
    assert len([r for r in records(output) if "val/total" in r]) == 4
    names = {name.split("/")[0] for name in students(output)}
    assert names == {"epoch_0", "epoch_1", "epoch_2", "best"}
    return config, output


def calls_before(step):
    """Calls of the divergence before a step: two micro-batches each, and 3 to validate."""
    return 2 * (step - 1) + 3 * ((step - 1) // 3)


@pytest.mark.parametrize(
    "stops",
    [(2,), (4,), (7,), (3, 9)],
    ids=["within an epoch", "at its end", "in a later one", "twice, after validation"],
)
def test_a_stopped_run_ends_as_the_whole_one(whole, tmp_path, stops, capfd):
    config, expected = whole
    output, done = tmp_path / "out", 0
    config = config | {"output_dir": str(output)}
    for step in stops:
        call = calls_before(step) - calls_before(done + 1) + 1
        code = distil(config, kd_loss__signal_at=[call], resume_from_checkpoint=done > 0)
        assert code == 128 + signal.SIGTERM
        assert checkpoints(output)[-1] == step
        assert records(output)[-1]["step"] == step
        assert f"SIGTERM after step {step}: saved" in capfd.readouterr().out
        done = step
    assert distil(config, resume_from_checkpoint=True) == 0
    assert f"resumed from {output / 'recipe_state' / f'step_{done}'}" in capfd.readouterr().out
    check_same(output, expected)


def test_workers_may_change_in_between_and_end_with_their_run(whole, tmp_path):
    config, expected = whole
    config = config | {"output_dir": str(tmp_path / "out")}
    for step, num_workers in ((2, 0), (7, 2)):
        call = calls_before(step) - calls_before(3 if step > 2 else 1) + 1
        changes = {"num_workers": num_workers, "resume_from_checkpoint": True}
        code = distil(config, kd_loss__signal_at=[call], **changes)
        assert code == 128 + signal.SIGTERM
        assert checkpoints(tmp_path / "out")[-1] == step
        gc.collect()
        assert not multiprocessing.active_children()
    assert distil(config, num_workers=1, resume_from_checkpoint=True) == 0
    assert not multiprocessing.active_children()
    check_same(tmp_path / "out", expected)


@pytest.mark.parametrize(
    ("every", "keep", "stop", "expected"),
    [(1, 3, 6, [4, 5, 6]), (3, 10, 8, [3, 4, 6, 8]), (None, 10, 6, [4, 6])],
)
def test_when_checkpoints_are_made_and_how_many_stay(whole, tmp_path, every, keep, stop, expected):
    """After every n-th step, at the end of each epoch (4 steps), and for a signal."""
    config, _ = whole
    config = config | {"output_dir": str(tmp_path / "out"), "dataset_val": None}
    config |= {"run_val_every_n_steps": None, "save_every_n_steps": every, "keep_last_n": keep}
    assert distil(config, kd_loss__signal_at=[2 * stop]) == 128 + signal.SIGTERM
    assert checkpoints(tmp_path / "out") == expected


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(whole, tmp_path, capfd):
    config, expected = whole
    config = config | {"output_dir": str(tmp_path / "out"), "save_every_n_steps": 1}
    assert distil(config, kd_loss__signal_at=[calls_before(7) + 1]) == 128 + signal.SIGTERM
    damaged = tmp_path / "out" / "recipe_state" / "step_7"
    file = next(damaged.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    assert distil(config, resume_from_checkpoint=True) == 0
    out = capfd.readouterr().out
    assert f"warning: checkpoint {damaged} is damaged" in out
    assert "resumed from" in out
    assert "step_6" in out
    check_same(tmp_path / "out", expected)


def test_nothing_but_damaged_checkpoints(tune_run, config_file, tmp_path):
    assert tune_run("kd_single_device", config_file, "save_every_n_steps=1")[0] == 0
    for path in (tmp_path / "out" / "recipe_state").glob("step_*/state.json"):
        path.unlink()
    before = snapshot(tmp_path / "out")
    code, _, err = tune_run("kd_single_device", config_file, "resume_from_checkpoint=true")
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: resume_from_checkpoint: no checkpoint in")
    assert "state.json" in last
    assert "resume_from_checkpoint=false" in last
    assert snapshot(tmp_path / "out") == before


def replace_state(folder, content):
    """As another version of the package would have written it, manifest included."""
    (folder / "state.json").write_text(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    manifest["state.json"] = {"size": len(content), "sha256": sha256}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "missing", ["seed", "source", "progress", "progress.skipped", "terms", "rng"]
)
def test_a_checkpoint_of_another_version(tune_run, config_file, tmp_path, missing):
    assert tune_run("kd_single_device", config_file, "seed=null")[0] == 0
    (folder,) = (tmp_path / "out" / "recipe_state").iterdir()
    facts = json.loads((folder / "state.json").read_text())
    *parents, key = missing.split(".")
    del (facts[parents[0]] if parents else facts)[key]
    replace_state(folder, json.dumps(facts))
    before = snapshot(tmp_path / "out")
    arguments = ["seed=null", "resume_from_checkpoint=true", "epochs=2"]
    code, _, err = tune_run("kd_single_device", config_file, *arguments)
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"error: {folder / 'state.json'} has no {key!r}; another version"), err
    assert "resume_from_checkpoint=false" in last
    assert "Traceback" not in err
    assert snapshot(tmp_path / "out") == before


@pytest.mark.parametrize(("content", "words"), [("[]", "no JSON object"), ("{", "not valid JSON")])
def test_a_checkpoint_of_something_else(tune_run, config_file, tmp_path, content, words):
    assert tune_run("kd_single_device", config_file)[0] == 0
    (folder,) = (tmp_path / "out" / "recipe_state").iterdir()
    replace_state(folder, content)
    code, _, err = tune_run("kd_single_device", config_file, "resume_from_checkpoint=true")
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"error: {folder / 'state.json'} ")
    assert words in last
    assert "Traceback" not in err


def test_every_file_has_the_mode_of_any_new_file(whole, tmp_path):
    """Colleagues and servers read students; safetensors alone would keep them to their writer."""
    _, output = whole
    (tmp_path / "new").touch()
    modes = {str(path): path.stat().st_mode for path in output.rglob("*") if path.is_file()}
    assert len(modes) > 20
    usual = (tmp_path / "new").stat().st_mode
    assert {path: oct(mode) for path, mode in modes.items() if mode != usual} == {}


def snapshot(folder):
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_without_a_checkpoint_a_run_starts_anew(tune_run, config_file, tmp_path):
    arguments = ("kd_single_device", config_file, "resume_from_checkpoint=true")
    assert tune_run(*arguments)[0] == 0
    first = students(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "recipe_state")
    code, out, _ = tune_run(*arguments)
    assert code == 0
    assert f"is now in {tmp_path / 'out' / 'previous' / '1'}" in out
    assert students(tmp_path / "out" / "previous" / "1") == students(tmp_path / "out") == first


def test_a_finished_run_stays_as_it_is_until_it_gets_more_epochs(tune_run, config_file, tmp_path):
    assert tune_run("kd_single_device", config_file, "epochs=2")[0] == 0
    before = students(tmp_path / "out"), records(tmp_path / "out")
    again = ("kd_single_device", config_file, "resume_from_checkpoint=true")
    assert tune_run(*again, "epochs=2")[0] == 0
    assert (students(tmp_path / "out"), records(tmp_path / "out")) == before
    assert tune_run(*again, "epochs=3")[0] == 0
    longer = tmp_path / "longer"
    assert tune_run("kd_single_device", config_file, "epochs=3", f"output_dir={longer}")[0] == 0
    check_same(tmp_path / "out", longer)


OTHERS = {
    "all weights": {"model": {"_component_": "hf_models.decoder"}},
    "SGD": {"optimizer": {"_component_": "torch.optim.SGD", "lr": 0.1}},
    "momentum": {"optimizer": {"_component_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9}},
    "bf16": {"dtype": "bf16"},
    "bf16, all weights": {"dtype": "bf16", "model": {"_component_": "hf_models.decoder"}},
    "checkpointed activations": {"enable_activation_checkpointing": True},
    "another seed each time": {"seed": None},
    "grouped by length": {"group_by_length": True},
    "labels only": {"loss_scaling": {"manual_scales": {"kd": 0.0, "ir": 0.0}}},
}


QUICK = ("bf16", "all weights", "SGD", "another seed each time", "grouped by length")
slow = pytest.mark.slow


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case in QUICK else slow) for case in OTHERS],
)
def test_other_setups_go_on_as_well(tune_run, config_file, tmp_path, case):
    """Stopped by a checkpoint's age instead of a signal: the files of step 3 of 4 are put back."""
    config = yaml.safe_load(config_file.read_text()) | {"epochs": 2, "save_every_n_steps": 3}
    config["model"]["lora_dropout"] = 0.2
    directory = config["model"]["checkpoint_dir"]
    config |= OTHERS[case]
    config["model"]["checkpoint_dir"] = directory
    config_file.write_text(yaml.safe_dump(config))
    assert tune_run("kd_single_device", config_file)[0] == 0
    shutil.move(tmp_path / "out", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "recipe_state" / "step_4")
    shutil.rmtree(tmp_path / "out" / "epoch_1")
    assert checkpoints(tmp_path / "out") == [3]
    code, out, err = tune_run("kd_single_device", config_file, "resume_from_checkpoint=true")
    assert code == 0, err
    assert "step_3" in out
    check_same(tmp_path / "out", tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("batch_size=1", ["samples per step", "4", "2"]),
        ("seed=2", ["seed"]),
        ("group_by_length=true", ["lengths to group by", "keep dataset", "group_by_length"]),
        ("model.lora_rank=8", ["step_", "lora"]),
        ("model.lora_attn_modules=[q_proj]", ["step_"]),
        ("optimizer._component_=torch.optim.Adagrad", ["step_", "optimizer"]),
        ("layer_mapping=last", ["layer"]),
    ],
)
def test_a_config_that_the_checkpoint_does_not_fit(tune_run, config_file, tmp_path, change, words):
    assert tune_run("kd_single_device", config_file, "save_every_n_steps=1")[0] == 0
    before = snapshot(tmp_path / "out")
    code, _, err = tune_run("kd_single_device", config_file, "resume_from_checkpoint=true", change)
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: "), err
    assert all(word in last for word in words), last
    assert "Traceback" not in err
    assert snapshot(tmp_path / "out") == before


def test_ctrl_c_is_the_same_as_sigterm_and_its_advice_works(tune_run, config_file, tmp_path):
    overrides = ["epochs=4", "kd_loss._component_=faulty_parts.FaultyLoss"]
    interrupt = ["kd_loss.signal_at=[5]", f"kd_loss.signal_number={int(signal.SIGINT)}"]
    code, out, err = tune_run("kd_single_device", config_file, *overrides, *interrupt)
    assert code == 128 + signal.SIGINT
    assert "SIGINT: finishing this step, then saving" in err
    advice = out.strip().splitlines()[-1].split()
    assert advice[:2] == ["tune", "run"]
    assert advice[3] == "--config"
    # The config that it names has the fault in it, which is over here.
    code, out, err = tune_run(advice[2], advice[4], *advice[5:], "kd_loss.signal_at=[]")
    assert code == 0, err
    assert "resumed from" in out
    assert [r["step"] for r in records(tmp_path / "out")] == list(range(1, 9))


def test_a_skipped_step_counts_after_a_resume_too(tune_run, config_file, tmp_path):
    faulty = ["kd_loss._component_=faulty_parts.FaultyLoss", "epochs=3", "save_every_n_steps=1"]
    code, out, _ = tune_run(
        "kd_single_device", config_file, *faulty, "skip_nonfinite_steps=2",
        "kd_loss.nan_at=[1,4]", "kd_loss.signal_at=[5]",
    )  # fmt: skip
    assert code == 128 + signal.SIGTERM
    assert out.count("skipped: step") == 2
    facts = json.loads((tmp_path / "out" / "recipe_state" / "step_3" / "state.json").read_text())
    assert facts["progress"]["skipped"] == 2
    again = ["resume_from_checkpoint=true", "kd_loss.nan_at=[1]"]
    code, _, err = tune_run(
        "kd_single_device", config_file, *faulty, "skip_nonfinite_steps=2", *again
    )
    assert code == 1
    assert "error: step 4: kd is nan" in err.strip().splitlines()[-1]
    code, out, err = tune_run(
        "kd_single_device", config_file, *faulty, "skip_nonfinite_steps=3", *again
    )
    assert code == 0, err
    skipped = [r.get("skipped_steps") for r in records(tmp_path / "out")]
    assert skipped == [1, 2, None, 3, None, None]


def test_resuming_opens_no_pickle(tune_run, config_file, tmp_path, monkeypatch):
    assert tune_run("kd_single_device", config_file, "epochs=2")[0] == 0

    def refuse(*_, **__):
        raise AssertionError("a pickle was opened")

    for name in ("load", "Unpickler", "_Unpickler", "_load"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    code, out, err = tune_run(
        "kd_single_device", config_file, "epochs=3", "resume_from_checkpoint=true"
    )
    assert code == 0, err
    assert "resumed from" in out
    assert (tmp_path / "out" / "epoch_2" / "model.safetensors").exists()
