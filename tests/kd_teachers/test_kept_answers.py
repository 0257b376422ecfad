"""A run on kept answers is the run on the live teacher."""

import pytest
import tiny
from omegaconf import OmegaConf

from kd_teachers.store.store import Store

VALIDATED = {"run_val_every_n_steps": 1, "batch_size_val": 3}


@pytest.fixture
def validated(tiny_run, tmp_path):
    node = OmegaConf.create(tiny_run.config(tmp_path)["dataset"])
    return VALIDATED | {"dataset_val": node}


PACKED = {"dataset.packed": True, "tokenizer.max_seq_len": 96}
RUNS = {
    "shuffled": {"epochs": 2},
    "in order, accumulated": {"shuffle": False, "gradient_accumulation_steps": 4, "batch_size": 1},
    "grouped by length": {"group_by_length": True},
    "packed": PACKED | {"batch_size": 1, "gradient_accumulation_steps": 1},
    "every position": {"token_scope": {"kd": "all", "ir": "all"}},
    "other layers in each epoch": {"layer_mapping": "in_order_random", "epochs": 2},
    "read ahead by workers": {"num_workers": 1},
    "a loss of its own temperature": {
        "kd_loss": {"_component_": "kd_losses.ReverseKLLoss", "temperature": 2.0},
        "log_agreement": True,
    },
    "nothing but layers": {
        "loss_scaling.manual_scales": {"ce": 1.0, "kd": 0.0, "ir": 1.0},
    },
    "the student's own base": {"teacher_model": "base", "teacher_checkpointer": None,
                               "layer_mapping": [[0, 0], [1, 1]]},
    "a teacher in 8 bits": {
        "teacher_quantization": {"_component_": "torchao.quantization.Int8WeightOnlyConfig"}
    },
}  # fmt: skip


@pytest.mark.parametrize("case", RUNS)
def test_hidden_states_give_the_live_run_bit_for_bit(case, teach, keep, validated):
    overrides = validated | RUNS[case]
    live = teach(overrides, "live")
    assert teach(overrides | {"teacher_cache": str(keep(overrides))}, "kept") == live
    assert len(live) >= 2


def test_one_cache_serves_rows_that_are_packed_shuffled_and_mixed(teach, keep, tiny_run, tmp_path):
    long = {"tokenizer.max_seq_len": 96}
    directory = str(keep(long))
    one = OmegaConf.create(tiny_run.config(tmp_path)["dataset"])
    mixed = {
        "dataset": {"_component_": "kd_data.mixture", "datasets": [one, one], "weights": [3, 1]}
    }
    # A text that is split at a row's end is two other texts.
    whole = PACKED | {"batch_size": 1, "dataset.split_across_pack": False}
    for number, overrides in enumerate([mixed, {"shuffle": False}, whole]):
        live = teach(long | overrides, f"live_{number}")
        kept = teach(long | overrides | {"teacher_cache": directory}, f"kept_{number}")
        assert kept == live


def test_a_teacher_of_another_tokenizer_is_served(teach, keep, tiny_run, tmp_path):
    teacher = tiny.save_model(tmp_path / "other", "qwen3", seed=1, vocab_size=2000)
    tiny.save_tokenizer(teacher, vocab_size=290, texts=tiny.SENTENCES[4:])
    own = tiny_run.config(tmp_path)["tokenizer"]
    student = str(tiny_run.directories["student"])
    overrides = {
        "teacher_model.checkpoint_dir": str(teacher),
        "teacher_checkpointer.checkpoint_dir": str(teacher),
        "tokenizer": own | {"checkpoint_dir": student, "max_seq_len": 30},
        "teacher_tokenizer": own | {"checkpoint_dir": str(teacher), "max_seq_len": 30},
        "layer_mapping": "none",
        "kd_loss": {"_component_": "kd_losses.ULDLoss"},
    }
    live = teach(overrides, "live")
    assert teach(overrides | {"teacher_cache": str(keep(overrides))}, "kept") == live


def test_a_text_is_kept_once(keep):
    directory = keep({"epochs": 1})
    store = Store(directory)
    assert len(store) == sum(part.documents for part in store.manifest.parts) == 8
    before = {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}
    keep({"epochs": 3, "shuffle": False})
    after = {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}
    assert {k: v for k, v in after.items() if k != "manifest.json"} == {
        k: v for k, v in before.items() if k != "manifest.json"
    }
