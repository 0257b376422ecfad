"""Several teachers: the float64 average of transformers' own outputs, and who teaches what."""

import json

import pytest
import tiny
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from kd_training import OneDevice, prepare
from kd_training.train import load

WEIGHTS = {"a": 3.0, "b": 1.0}
ALONE = {"teacher_model": None, "teacher_checkpointer": None, "layer_mapping": "none"}
WHOLE = {"batch_size": 8, "gradient_accumulation_steps": 1, "shuffle": False}


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A second teacher of the same vocabulary."""
    directory = tmp_path_factory.mktemp("second") / "b"
    return tiny.save_model(directory, num_hidden_layers=3, seed=5)


@pytest.fixture
def several(tiny_run, other):
    """The keys of two teachers."""
    directories = {"a": tiny_run.directories["teacher"], "b": other}
    nodes = {
        name: {
            "model": {"_component_": "hf_models.decoder", "checkpoint_dir": str(directory)},
            "checkpointer": {
                "_component_": "hf_models.HFCheckpointer", "checkpoint_dir": str(directory)
            },
            "weight": WEIGHTS[name],
        }
        for name, directory in directories.items()
    }  # fmt: skip
    return ALONE | WHOLE | {"teachers": nodes}, directories


def log_p(directory, text):
    """log-softmax of transformers' own logits in float64, [S − 1, V]: one row for each target."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id][:63]
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)


def mixed(parts, average):
    shares = torch.tensor([WEIGHTS[name] for name in parts], dtype=torch.float64)
    shares = (shares / shares.sum())[:, None, None]
    stacked = torch.stack(list(parts.values()))
    if average == "probabilities":
        return (stacked.exp() * shares).sum(0).log()
    return (stacked * shares).sum(0).log_softmax(-1)


def kl(log_teacher, log_student):
    return (log_teacher.exp() * (log_teacher - log_student)).sum().item()


def expected(tiny_run, directories, average, teachers_of=lambda _: ("a", "b")):
    """Means of kd and of each teacher's own over all targets."""
    sums, count = {"kd": 0.0, "kd/a": 0.0, "kd/b": 0.0}, 0
    for i, text in enumerate(tiny.SENTENCES):
        student = log_p(tiny_run.directories["student"], text)
        parts = {name: log_p(directories[name], text) for name in teachers_of(i)}
        sums["kd"] += kl(mixed(parts, average), student)
        for name, part in parts.items():
            sums[f"kd/{name}"] += kl(part, student)
        count += len(student)
    return {name: value / count for name, value in sums.items()}


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_the_average_is_that_of_float64(average, several, teach, tiny_run):
    config, directories = several
    logged = teach(config | {"teacher_average": average})[0]
    for name, value in expected(tiny_run, directories, average).items():
        assert logged[name] == pytest.approx(value, rel=1e-5), name


def test_a_column_of_the_data_names_a_rows_teacher(several, teach, tiny_run, tmp_path):
    config, directories = several
    names = ["a", "b", None, "b", "a", None, "a", "b"]
    rows = [{"text": t, "teacher": n} for t, n in zip(tiny.SENTENCES, names, strict=True)]
    path = tmp_path / "routed.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    logged = teach(config | {"dataset.data_files": str(path)})[0]
    wanted = expected(
        tiny_run, directories, "probabilities",
        lambda i: ("a", "b") if names[i] is None else (names[i],),
    )  # fmt: skip
    for name, value in wanted.items():
        assert logged[name] == pytest.approx(value, rel=1e-5), name


def test_one_of_them_may_be_kept(several, teach, keep):
    config, _ = several
    live = teach(config, "live")
    directory = keep(config | {"cache": {"teacher": "b"}})
    nodes = config["teachers"] | {"b": {"cache": str(directory), "weight": WEIGHTS["b"]}}
    assert teach(config | {"teachers": nodes}, "kept") == live


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_model": "base"}, "teacher_model and teachers"),
        ({"layer_mapping": "forward"}, "ir needs the outputs of its layers"),
        ({"teachers": {"a": {"weight": 1}}}, "teachers.a.model must be set"),
        ({"cache": {"teacher": "c"}, "cache_dir": "x"}, None),
    ],
)
def test_what_does_not_go_together(changes, message, several, teach, keep):
    config, _ = several
    if message is None:
        with pytest.raises(ValueError, match="name one of the teachers: a, b"):
            keep(config | changes)
        return
    with pytest.raises(ValueError, match=message):
        teach(config | changes)


def test_a_row_of_an_unknown_teacher_and_packed_rows_are_refused(several, teach, tmp_path):
    config, _ = several
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "Numbers are immutable.", "teacher": "z"}) + "\n")
    one = {"dataset.data_files": str(path), "batch_size": 1}
    with pytest.raises(ValueError, match="sample 0: its column teacher says 'z'"):
        teach(config | one)
    with pytest.raises(ValueError, match="packing loses"):
        teach(config | one | {"dataset.packed": True})


def test_favourites_alone_cannot_be_averaged(several, teach, keep):
    config, _ = several
    directory = keep(config | {"cache": {"teacher": "b", "logits": "top_k", "k": 8}})
    nodes = config["teachers"] | {"b": {"cache": str(directory)}}
    with pytest.raises(ValueError, match="no average can be made"):
        teach(config | {"teachers": nodes})


LORA = {"model.lora_dropout": 0.3}
BASES = {
    "dropout": LORA,
    "dora": {"model.use_dora": True},
    "every position": {"token_scope": {"kd": "all", "ir": "all"}},
}


@pytest.mark.parametrize("case", BASES)
def test_the_students_base_teaches_like_a_copy_of_it(case, teach, tiny_run):
    student = str(tiny_run.directories["student"])
    pairs = {"layer_mapping": [[0, 0], [1, 1]], "epochs": 2}
    base = {"teacher_model": "base", "teacher_checkpointer": None}
    copy = {
        "teacher_model.checkpoint_dir": student,
        "teacher_checkpointer.checkpoint_dir": student,
    }
    assert teach(BASES[case] | pairs | base, "base") == teach(BASES[case] | pairs | copy, "copy")


@pytest.mark.parametrize("kind", ["lora_decoder", "lora_auto_model"])
def test_asking_the_base_leaves_the_student_as_it_was(kind, tiny_run, tmp_path):
    cfg = OmegaConf.create(tiny_run.config(tmp_path))
    cfg.teacher_model, cfg.teacher_checkpointer, cfg.layer_mapping = "base", None, "none"
    if kind == "lora_auto_model":
        directory = cfg.model.checkpoint_dir
        cfg.model = {"_component_": "hf_models.lora_auto_model", "checkpoint_dir": directory,
                     "lora_rank": 4, "lora_alpha": 8}  # fmt: skip
    run = prepare(cfg, OneDevice("cpu"))
    loaded = load(run)
    module = run.student.module.train()
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert run.teacher.members() == {}
    batch = run.source.first_batch()
    # LoRA starts as nothing, so the first step finds nothing to learn from the base.
    assert loaded.step([batch], 1)["kd"] == pytest.approx(0, abs=1e-5)
    assert loaded.step([batch], 2)["kd"] > 1e-6
    assert module.training
    assert {name for name, p in module.named_parameters() if p.requires_grad} == trained


def test_a_student_without_an_adapter_has_no_base(teach, tiny_run):
    whole = {"_component_": "hf_models.decoder",
             "checkpoint_dir": str(tiny_run.directories["student"])}  # fmt: skip
    with pytest.raises(ValueError, match="there is no base left"):
        teach({"model": whole, "teacher_model": "base", "teacher_checkpointer": None})
