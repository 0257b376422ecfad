"""Students against the teacher's own layers in transformers."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from hf_models import HFCheckpointer, init_student, read_config

FAMILIES = ["llama", "qwen2", "qwen3"]


def from_transformers(directory):
    """transformers' model, whose weights all came from the directory."""
    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def pruned(teacher, layers):
    student = copy.deepcopy(teacher)
    student.model.layers = nn.ModuleList(student.model.layers[i] for i in layers)
    student.config.num_hidden_layers = len(layers)
    return student


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("arguments", "copied"),
    [
        ({"num_layers": 2}, [2, 5]),
        ({"num_layers": 6}, [0, 1, 2, 3, 4, 5]),
        ({"num_layers": 1}, [5]),
        ({"layers": [0, -1]}, [0, 5]),
        ({"layers": [4, 1, -6]}, [4, 1, 0]),
    ],
    ids=str,
)
@torch.no_grad()
def test_copied_layers_are_the_teachers(make_hf, tmp_path, tokens, family, tied, arguments, copied):
    directory, teacher = make_hf(family, num_hidden_layers=6, tie_word_embeddings=tied)
    student_dir = init_student(directory, tmp_path / "student", **arguments)
    expected = pruned(teacher, copied)(tokens, use_cache=False).logits
    assert torch.equal(from_transformers(student_dir)(tokens).logits, expected)
    assert read_config(student_dir).num_hidden_layers == len(copied)
    HFCheckpointer(student_dir).check()


@pytest.mark.parametrize(
    ("num_teacher_layers", "num_layers", "expected"),
    [
        (28, 7, [3, 7, 11, 15, 19, 23, 27]),
        (36, 9, [3, 7, 11, 15, 19, 23, 27, 31, 35]),
        (30, 10, [2, 5, 8, 11, 14, 17, 20, 23, 26, 29]),
        (7, 3, [1, 4, 6]),
    ],
)
def test_even_spacing(make_hf, tmp_path, num_teacher_layers, num_layers, expected):
    sizes = {"vocab_size": 3, "hidden_size": 8, "intermediate_size": 2, "head_dim": 2}
    directory, teacher = make_hf("qwen3", num_hidden_layers=num_teacher_layers, **sizes)
    student_dir = init_student(directory, tmp_path / "student", num_layers=num_layers)
    student = load_file(student_dir / "model.safetensors")
    name = "model.layers.{}.input_layernorm.weight"
    got = [
        next(
            i
            for i in range(num_teacher_layers)
            if torch.equal(student[name.format(j)], teacher.state_dict()[name.format(i)])
        )
        for j in range(num_layers)
    ]
    assert got == expected


def test_fields_and_files_that_go_with_the_layers(make_hf, tmp_path):
    directory, _ = make_hf("qwen3", num_hidden_layers=6)
    (directory / "tokenizer.json").write_text("tokens")
    init_student(directory, tmp_path / "student", num_layers=2, dtype="bf16")
    teacher, student = (
        json.loads((d / "config.json").read_text()) for d in (directory, tmp_path / "student")
    )
    assert student == teacher | {
        "num_hidden_layers": 2,
        "layer_types": ["full_attention"] * 2,
        "max_window_layers": 2,
        "dtype": "bfloat16",
    }
    assert (tmp_path / "student/tokenizer.json").read_text() == "tokens"
    assert from_transformers(tmp_path / "student").dtype == torch.bfloat16


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_random_init_is_fresh_and_seeded(make_hf, tmp_path, family, tied):
    directory, teacher = make_hf(family, tie_word_embeddings=tied)
    state = torch.random.get_rng_state()
    first, same, other = (
        from_transformers(
            init_student(directory, tmp_path / name, num_layers=2, mode="random_init", seed=seed)
        )
        for name, seed in (("first", 1), ("same", 1), ("other", 2))
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    weight = "model.layers.1.mlp.up_proj.weight"
    first, same, other, teacher = (m.state_dict() for m in (first, same, other, teacher))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first[weight], other[weight])
    assert not torch.equal(first[weight], teacher[weight])
    assert first[weight].std() == pytest.approx(0.02, rel=0.1)  # the config's initializer_range
    assert torch.equal(first["model.norm.weight"], torch.ones(32))


@pytest.mark.parametrize("family", FAMILIES)
def test_narrower_students(make_hf, tmp_path, tokens, family):
    directory, _ = make_hf(family)
    overrides = {
        "hidden_size": 12,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "intermediate_size": 20,
        "head_dim": 6,
        "tie_word_embeddings": True,
    }
    student_dir = init_student(
        directory, tmp_path / "student", mode="random_init", overrides=overrides
    )
    config = from_transformers(student_dir).config
    assert {name: getattr(config, name) for name in overrides} == overrides
    assert config.num_hidden_layers == 3
    HFCheckpointer(student_dir).check()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either layers or num_layers"),
        ({"layers": [0], "num_layers": 1}, "either layers or num_layers"),
        ({"layers": []}, "layers is empty"),
        ({"layers": [0, 3]}, "no layer 3; the teacher's are 0 to 2"),
        ({"layers": [-4]}, "no layer -4"),
        ({"layers": [2, -1]}, "layer 2 is named more than once"),
        ({"num_layers": 4}, "num_layers is 4; the teacher has 3"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"num_layers": 1, "overrides": {"hidden_size": 8}}, "random_init"),
        ({"num_layers": 1, "mode": "copy"}, "'copy'; use weight_copy or random_init"),
        ({"layers": [0], "mode": "random_init"}, "use num_layers"),
        ({"num_layers": 0, "mode": "random_init"}, "num_layers is 0"),
        ({"mode": "random_init", "overrides": {"vocab_size": 8}}, "vocab_size is none of"),
        ({"mode": "random_init", "overrides": {"num_attention_heads": 3}}, "num_key_value_heads"),
        ({"mode": "random_init", "overrides": {"hidden_size": "a"}}, "hidden_size"),
        ({"num_layers": 1, "dtype": "fp99"}, "fp99"),
    ],
)
def test_invalid_arguments_write_nothing(make_hf, tmp_path, arguments, message):
    directory, _ = make_hf("qwen3")
    with pytest.raises(ValueError, match=message) as error:
        init_student(directory, tmp_path / "student", **arguments)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [directory]


def test_what_is_there_is_never_replaced(make_hf, tmp_path):
    directory, _ = make_hf("llama")
    (tmp_path / "student").mkdir()
    init_student(directory, tmp_path / "student", num_layers=1)  # empty: fine
    with pytest.raises(FileExistsError, match="is not empty"):
        init_student(directory, tmp_path / "student", num_layers=1)
    with pytest.raises(FileNotFoundError, match="no such model directory"):
        init_student(tmp_path / "none", tmp_path / "other", num_layers=1)
