"""What does not go together with text that the student writes itself: refused before weights."""

import pytest
from families import family_config, save_family
from omegaconf import OmegaConf

from kd_training import OneDevice, prepare
from kd_training.caching.run import cache_teacher

OWN = {"on_policy": {"max_new_tokens": 4, "prompt_tokens": 4}}


def refused(config, changes):
    cfg = OmegaConf.create(config)
    for key, value in changes.items():
        OmegaConf.update(cfg, key, value, force_add=True)
    with pytest.raises(ValueError, match=r"^config: ") as error:
        prepare(cfg, OneDevice("cpu"))
    return str(error.value)


NO_PARTS = {f"loss_scaling.manual_scales.{part}": 0.0 for part in ("kd", "ir")}
KEYS = {
    "fraction": ({"on_policy.fraction": 1.5}, ["on_policy.fraction is 1.5", "between 0 and 1"]),
    "misspelt": ({"on_policy.fration": 1.0}, ["on_policy.fration", "did you mean fraction"]),
    "temperature": ({"on_policy.temperature": -1}, ["on_policy.temperature is -1"]),
    "top_p": ({"on_policy.top_p": 0}, ["on_policy.top_p is 0"]),
    "max_new_tokens": ({"on_policy.max_new_tokens": 0}, ["on_policy.max_new_tokens is 0"]),
    "generator": (
        {"on_policy.generator": {"_component_": "fractions.Fraction"}},
        ["on_policy.generator"],
    ),
    "no section": ({"on_policy": True}, ["on_policy is True", "any of fraction"]),
    "parts": (NO_PARTS, ["on_policy.fraction is above 0", "give kd or ir a weight"]),
    "tokenizer": (
        {
            "teacher_tokenizer": "${tokenizer}",
            "kd_loss": {"_component_": "kd_losses.ULDLoss"},
            "layer_mapping": "none",
        },
        ["on_policy and teacher_tokenizer"],
    ),
    "no teacher": (
        NO_PARTS | {"on_policy.fraction": 0.0, "dataset_val": "${dataset}"},
        ["on_policy.val_prompts", "the run has none"],
    ),
}


@pytest.mark.parametrize("name", KEYS)
def test_what_does_not_fit(tiny_run, tmp_path, name):
    changes, words = KEYS[name]
    message = refused(tiny_run.config(tmp_path) | OWN, changes)
    assert all(word in message for word in words), message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_kept_answers(tiny_run, tmp_path, fraction):
    cache = str(tmp_path / "cache")
    cache_teacher(OmegaConf.create(tiny_run.config(tmp_path) | {"cache_dir": cache}),
                  OneDevice("cpu"))  # fmt: skip
    changes = {"teacher_cache": cache, "on_policy.fraction": fraction}
    message = refused(tiny_run.config(tmp_path) | OWN, changes | {"dataset_val": "${dataset}"})
    assert "teacher_cache holds what a teacher has said of text that was there" in message
    assert ("val_prompts" in message) == (fraction == 0)


def test_a_classifier(tmp_path):
    for who, student in (("teacher", False), ("student", True)):
        save_family(tmp_path / who, "bert", student=student)
    config = family_config(tmp_path, "bert", tmp_path / "teacher", tmp_path / "student")
    assert "is a classifier, which writes no text" in refused(config | OWN, {})
