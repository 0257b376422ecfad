"""A run's directory belongs to one run at a time, which leaves nothing in it half done."""

import errno
import fcntl
import json
import os
import shutil
import signal
import socket

import pytest
import yaml
from blocking_parts import Gate
from processes import GUARD, Processes
from resuming import check_same, checkpoints, distil, everything, records, students

from hf_models import HFCheckpointer
from kd_training.checkpoint import files
from kd_training.output.lock import LOCK_FILE, locked


@pytest.fixture
def processes(tmp_path):
    return Processes(tmp_path / "log.txt")


@pytest.fixture(scope="module")
def whole(tiny_run, tmp_path_factory):
    """The config of a run with all parts, and the output of running it at one go."""
    root = tmp_path_factory.mktemp("whole")
    config = everything(root, tiny_run.directories["teacher"])
    assert distil(config) == 0
    return config, root / "out"


@pytest.fixture
def exports(monkeypatch):
    """The students that are exported, by name; those in `fail` find no room."""
    save, names = HFCheckpointer.save_checkpoint, []

    def record(self, *args, epoch, dirname=None, **kwargs):
        names.append(dirname or f"epoch_{epoch}")
        if names[-1] in names.fail:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, *args, epoch=epoch, dirname=dirname, **kwargs)

    class Names(list):
        fail: frozenset[str] = frozenset()

    names = Names()
    monkeypatch.setattr(HFCheckpointer, "save_checkpoint", record)
    return names


def snapshot(folder):
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != LOCK_FILE]
    return {str(p): p.read_bytes() for p in files}


def last_line(text):
    return text.strip().splitlines()[-1]


# --- the student that a checkpoint owes


@pytest.mark.parametrize(("which", "step"), [("epoch_0", 4), ("epoch_2", 12), ("best", 3)])
def test_an_export_that_fails_costs_no_step(whole, tmp_path, exports, capfd, which, step):
    """What lies at its place from an earlier attempt is no substitute."""
    config, expected = whole
    output = tmp_path / "out"
    config = config | {"output_dir": str(output)}
    checkpoint = output / "recipe_state" / f"step_{step}"
    shutil.copytree(expected / which, tmp_path / "stale")
    (tmp_path / "stale" / "model.safetensors").write_bytes(b"of another attempt")
    exports.fail = {which}
    with pytest.raises(
        OSError, match=f"could not be written: .*No space.* go on from {checkpoint}$"
    ):
        distil(config)
    assert checkpoints(output)[-1] == step
    assert not (output / which).exists()
    shutil.copytree(tmp_path / "stale", output / which)
    before = records(output)
    with pytest.raises(OSError, match=f"go on from {checkpoint}$"):
        distil(config, resume_from_checkpoint=True)
    assert records(output) == before, "it does not train before it has paid"
    exports.clear()
    exports.fail = set()
    capfd.readouterr()
    assert distil(config, resume_from_checkpoint=True) == 0
    assert exports[0] == which
    assert f"resumed from {checkpoint}" in capfd.readouterr().out
    check_same(output, expected)


def numbers_of_the_card(folder):
    """The card's objective, without the clock's numbers."""
    return (folder / "README.md").read_text().partition("## Objective")[2].partition("## ")[0]


def test_an_owed_student_has_the_card_of_one_that_was_not_owed(whole, tmp_path, exports):
    config, expected = whole
    config = config | {"output_dir": str(tmp_path / "out")}
    exports.fail = {"epoch_2"}
    with pytest.raises(OSError, match="the student of epoch 2"):
        distil(config)
    exports.fail = set()
    assert distil(config, resume_from_checkpoint=True) == 0
    card = numbers_of_the_card(tmp_path / "out" / "epoch_2")
    assert card == numbers_of_the_card(expected / "epoch_2")
    assert card.count("|") > 20


@pytest.mark.parametrize(
    "where",
    [
        "kd_training.output.student.save_student",  # the state is there, the student is not
        "kd_training.output.student.write_model_card",  # the student is there, its card is not
        "kd_training.saving.note_export",  # only the note is missing
    ],
)
def test_killed_while_a_student_is_owed(whole, tmp_path, processes, where):
    """Right after the first epoch; `best` is out of the way."""
    config, _ = whole
    config = config | {"output_dir": str(tmp_path / "out"), "dataset_val": None, "epochs": 1}
    config |= {"run_val_every_n_steps": None, "max_steps_per_epoch": 2}
    assert processes.finish(config, killed_in=where) == -signal.SIGKILL
    assert checkpoints(tmp_path / "out") == [2]
    assert processes.finish(config | {"resume_from_checkpoint": True}) == 0, processes.text()
    assert "first exports the student" in processes.text()
    assert processes.finish(config | {"output_dir": str(tmp_path / "other")}) == 0
    check_same(tmp_path / "out", tmp_path / "other")
    assert (tmp_path / "out" / "epoch_0" / "README.md").exists()


def test_a_finished_run_exports_nothing_again(whole, tmp_path, exports, capfd):
    config, expected = whole
    shutil.copytree(expected, tmp_path / "out")
    before = snapshot(tmp_path / "out" / "epoch_2") | snapshot(tmp_path / "out" / "best")
    config = config | {"output_dir": str(tmp_path / "out"), "resume_from_checkpoint": True}
    assert distil(config) == 0
    assert exports == []
    assert "all 3 epochs are done: nothing is left to train" in capfd.readouterr().out
    assert snapshot(tmp_path / "out" / "epoch_2") | snapshot(tmp_path / "out" / "best") == before
    check_same(tmp_path / "out", expected)


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_state_that_finds_no_room_does_not_cost_the_student(
    tune_run, config_file, tmp_path, monkeypatch
):
    """And nobody is told to go on from a checkpoint that is not there."""
    monkeypatch.setattr(files.dcp, "save", no_space)
    code, _, err = tune_run("kd_single_device", config_file)
    assert code == 1
    assert "step_2 could not be written: [Errno 28] No space left" in last_line(err)
    assert "start anew: there is no checkpoint to resume from" in last_line(err)
    assert "resume_from_checkpoint" not in err
    assert list(students(tmp_path / "out")) == [
        "epoch_0/adapter/adapter_model.safetensors",
        "epoch_0/model.safetensors",
    ]


def test_a_metric_that_finds_no_room(tune_run, config_file, tmp_path, monkeypatch):
    """Before the first checkpoint, and after it."""
    dump, calls = json.dumps, []

    def full_at_the_third(values, *args, **kwargs):
        if isinstance(values, dict) and "grad_norm" in values and "epoch" not in values:
            calls.append(values)
            if len(calls) in (1, 4):
                no_space()
        return dump(values, *args, **kwargs)

    monkeypatch.setattr("kd_training.output.step_lines.json.dumps", full_at_the_third)
    arguments = ("kd_single_device", config_file, "save_every_n_steps=1", "log_every_n_steps=1")
    code, _, err = tune_run(*arguments)
    assert code == 1
    assert "metrics.jsonl could not be written" in last_line(err)
    assert "resume_from_checkpoint" not in last_line(err)
    code, _, err = tune_run(*arguments, "epochs=2")
    assert code == 1
    assert checkpoints(tmp_path / "out") == [1, 2]
    newest = tmp_path / "out" / "recipe_state" / "step_2"
    assert last_line(err).endswith(f"set resume_from_checkpoint=true to go on from {newest}")


# --- resuming without a checkpoint


@pytest.mark.parametrize("arguments", [[], ["dry_run=true"]], ids=["run", "dry run"])
def test_resuming_from_nothing_is_said(tune_run, config_file, tmp_path, arguments):
    code, out, err = tune_run(
        "kd_single_device", config_file, "resume_from_checkpoint=true", *arguments
    )
    assert code == 0, err
    lines = [line for line in out.splitlines() if line.startswith("warning: resume")]
    assert lines == [
        f"warning: resume_from_checkpoint is true, but {tmp_path}/out/recipe_state has no "
        "checkpoint: starting at step 0"
    ]


# --- sources inside the directory


@pytest.fixture
def second_stage(tune_run, config_file, tmp_path):
    """A finished first stage; a function that runs a second one from another student."""
    assert tune_run("kd_single_device", config_file)[0] == 0

    def run(student, *arguments):
        keys = [f"{key}.checkpoint_dir={student}" for key in ("model", "checkpointer")]
        return tune_run("kd_single_device", config_file, *keys, *arguments)

    return run


@pytest.mark.parametrize("arguments", [[], ["dry_run=true"]], ids=["run", "dry run"])
@pytest.mark.parametrize("link", [False, True], ids=["itself", "by a link"])
def test_a_second_stage_in_the_folder_of_its_source(second_stage, tmp_path, link, arguments):
    student = tmp_path / "out" / "epoch_0"
    if link:
        (tmp_path / "link").symlink_to(student)
        student = tmp_path / "link"
    before = snapshot(tmp_path / "out")
    code, _, err = second_stage(student, *arguments)
    assert code == 1
    assert last_line(err) == (
        f"error: config: model.checkpoint_dir {student} lies in {tmp_path}/out/epoch_0, which this "
        "run moves to previous/ or writes over; set another output_dir"
    )
    assert snapshot(tmp_path / "out") == before


def test_a_second_stage_elsewhere_or_from_what_stays_where_it_is(second_stage, tmp_path):
    code, _, err = second_stage(tmp_path / "out" / "epoch_0", f"output_dir={tmp_path / 'other'}")
    assert code == 0, err
    kept = tmp_path / "out" / "previous" / "1" / "epoch_0"
    shutil.copytree(tmp_path / "out" / "epoch_0", kept)
    code, _, err = second_stage(kept, "dry_run=true")
    assert code == 0, err


def test_a_resumed_run_may_read_the_epochs_that_it_does_not_write(tune_run, config_file, tmp_path):
    """Its own first epoch as the teacher of the next."""
    assert tune_run("kd_single_device", config_file, "layer_mapping=none")[0] == 0
    teacher = [
        f"teacher_{k}.checkpoint_dir={tmp_path}/out/epoch_0" for k in ("model", "checkpointer")
    ]
    again = ["kd_single_device", config_file, "layer_mapping=none", *teacher, "epochs=2"]
    code, _, err = tune_run(*again, "resume_from_checkpoint=true")
    assert code == 0, err
    code, _, err = tune_run(*again, "resume_from_checkpoint=false")
    assert code == 1
    assert last_line(err).startswith("error: config: teacher_model.checkpoint_dir ")


# --- two runs at once


@pytest.fixture
def blocked(whole, tmp_path, processes):
    """Starts a run that waits in its 6th step, after the checkpoint of the 4th; its config."""
    config, _ = whole
    (tmp_path / "gate").mkdir()
    gate, started = Gate(tmp_path / "gate"), []
    loss = {"_component_": "blocking_parts.BlockingLoss", "folder": str(tmp_path / "gate")}
    config = config | {"output_dir": str(tmp_path / "out")}

    def start(**options):
        process = processes.start(config | {"kd_loss": loss | {"at": 14} | options})
        started.append(process)
        return process, gate, gate.reached(process)

    yield start, config
    for process in started:
        process.kill()


@pytest.mark.parametrize("resume", [False, True], ids=["anew", "resuming"])
def test_a_second_run_in_one_folder_is_refused(whole, blocked, tmp_path, resume):
    start, config = blocked
    first, gate, _ = start()
    assert checkpoints(tmp_path / "out") == [4]
    before = snapshot(tmp_path / "out")
    second = Processes(tmp_path / "second.txt")
    changes = {"resume_from_checkpoint": resume, "save_every_n_steps": 1}
    assert second.finish(config | changes) == 1
    who = f"in use by process {first.pid} on {socket.gethostname()}, since 2"
    assert last_line(second.text()).startswith(f"error: output_dir {tmp_path / 'out'} is {who}")
    assert "set another output_dir" in last_line(second.text())
    assert second.finish(config | changes | {"dry_run": True}) == 0
    assert snapshot(tmp_path / "out") == before
    gate.open()
    first.join(GUARD)
    assert first.exitcode == 0
    check_same(tmp_path / "out", whole[1])
    assert not [path.name for path in (tmp_path / "out").rglob(".*")]


@pytest.mark.parametrize("resume", [False, True], ids=["anew", "resuming"])
def test_a_killed_run_keeps_nobody_out(whole, blocked, tmp_path, processes, resume):
    """Not even through a child that it has forked, which is still there."""
    start, config = blocked
    first, _, child = start(child=True)
    try:
        first.kill()
        first.join(GUARD)
        os.kill(child, 0)  # it is there
        code = processes.finish(config | {"resume_from_checkpoint": resume})
        assert code == 0, processes.text()
    finally:
        os.kill(child, signal.SIGKILL)
    check_same(tmp_path / "out", whole[1])
    assert (tmp_path / "out" / "previous").exists() is not resume


def test_a_lock_whose_owner_ends_while_it_is_opened(tmp_path, monkeypatch):
    """Then the opened file has no name any more, and another run could make its own."""
    lock, calls = fcntl.lockf, []

    def owner_ends_first(*args):
        calls.append(args)
        if len(calls) == 1:
            (tmp_path / "out" / LOCK_FILE).unlink()
        lock(*args)

    monkeypatch.setattr(fcntl, "lockf", owner_ends_first)
    with locked(tmp_path / "out"):
        assert len(calls) == 2
        assert str(os.getpid()) in (tmp_path / "out" / LOCK_FILE).read_text()
    assert not (tmp_path / "out").exists()


def test_a_file_system_without_locks_is_a_warning(tune_run, config_file, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    code, _, err = tune_run("kd_single_device", config_file, "max_steps_per_epoch=1")
    assert code == 0, err
    assert f"warning: output_dir {tmp_path / 'out'} is on a file system without locks" in err


# --- replacements that were killed halfway


def interrupt(student):
    """As `kill -9` leaves it between the two renames."""
    student.rename(student.with_name(f".{student.name}.previous"))
    shutil.copytree(student.with_name(f".{student.name}.previous"),
                    student.with_name(f".{student.name}.partial"))  # fmt: skip


@pytest.mark.parametrize("resume", [False, True], ids=["anew", "resuming"])
def test_students_are_put_back(whole, tmp_path, resume):
    config, expected = whole
    output = tmp_path / "out"
    shutil.copytree(expected, output)
    for path in ("best/adapter", "best", "epoch_1"):
        interrupt(output / path)
    config = config | {"output_dir": str(output), "resume_from_checkpoint": resume}
    assert distil(config, **({} if resume else {"max_steps_per_epoch": 1, "epochs": 1})) == 0
    earlier = output if resume else output / "previous" / "1"
    check_same(earlier, expected)
    assert not [path.name for path in output.rglob(".*")]


# --- what the best student is chosen by


def best_and_last(output, epoch):
    files = students(output)
    return files["best/model.safetensors"], files[f"epoch_{epoch}/model.safetensors"]


@pytest.fixture
def one_step_epochs(config_file):
    """A validation after each epoch's only step, with a total that is low at first."""
    config = yaml.safe_load(config_file.read_text())
    config |= {"max_steps_per_epoch": 1, "run_val_every_n_steps": 1}
    config["dataset_val"] = dict(config["dataset"])
    config["loss_scaling"]["manual_scales"] = {"ce": 0.1, "kd": 0.1, "ir": 0.1}
    config_file.write_text(yaml.safe_dump(config))
    return config


ANEW = "best/ is chosen anew"
MEASURES = {
    "weights": ["loss_scaling.manual_scales.ce=9"],
    "divergence": ["kd_loss.temperature=0.5", "optimizer.lr=1"],
    "data": ["dataset_val.split=train[:2]"],
    "tokens": ["tokenizer.max_seq_len=12"],
    "scope": ["token_scope.kd=all"],
}


@pytest.mark.parametrize("case", MEASURES)
def test_the_best_is_chosen_anew_by_another_measure(
    tune_run, config_file, one_step_epochs, tmp_path, case
):
    assert tune_run("kd_single_device", config_file)[0] == 0
    again = ["resume_from_checkpoint=true", "epochs=2", *MEASURES[case]]
    code, out, err = tune_run("kd_single_device", config_file, *again)
    assert code == 0, err
    assert out.count(ANEW) == 1
    best, last = best_and_last(tmp_path / "out", epoch=1)
    assert best == last


def test_the_best_stays_by_the_same_measure(tune_run, config_file, one_step_epochs, tmp_path):
    """Its samples may come in other batches and from another file, the training may be worse."""
    assert tune_run("kd_single_device", config_file)[0] == 0
    moved = tmp_path / "moved.jsonl"
    shutil.copy(one_step_epochs["dataset_val"]["data_files"], moved)
    before = students(tmp_path / "out")["best/model.safetensors"]
    again = ["resume_from_checkpoint=true", "epochs=2", f"dataset_val.data_files={moved}"]
    again += ["batch_size_val=3", "loss.num_output_chunks=4"]
    again += ["loss._component_=torchtune.modules.loss.CEWithChunkedOutputLoss"]
    code, out, err = tune_run("kd_single_device", config_file, *again)
    assert code == 0, err
    assert ANEW not in out
    total = [r["val/total"] for r in records(tmp_path / "out") if "val/total" in r]
    best, last = best_and_last(tmp_path / "out", epoch=1)
    assert best == (last if total[1] < total[0] else before)
