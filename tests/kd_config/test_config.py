import pytest
from omegaconf import OmegaConf

from kd_config.check import check_config, typed
from kd_config.weights import loss_weights
from kd_training import OneDevice, prepare


def config(tiny_run, tmp_path, **changes):
    return OmegaConf.create(tiny_run.config(tmp_path) | changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"loss_scaling": {"enabled": False}, "kd_ratio": 0.3}, (0.7, 0.3, 1.0)),
        ({"loss_scaling": {"enabled": True, "manual_scales": {"ce": 0.5, "kd": 0.3, "ir": 0.2}}},
         (0.5, 0.3, 0.2)),
        ({"layer_mapping": "none"}, (1.0, 1.0, 0.0)),
        ({"layer_mapping": None}, (1.0, 1.0, 0.0)),
    ],
)  # fmt: skip
def test_weights(tiny_run, tmp_path, changes, expected):
    weights = loss_weights(typed(check_config(config(tiny_run, tmp_path, **changes))))
    assert tuple(weights.values()) == pytest.approx(expected)
    assert list(weights) == ["ce", "kd", "ir"]


def test_null_on_the_command_line_removes_a_component(tiny_run, tmp_path):
    # torchtune turns `lr_scheduler=null` into lr_scheduler._component_=null.
    given = {"_component_": None, "num_warmup_steps": 3}
    assert check_config(config(tiny_run, tmp_path, lr_scheduler=given)).lr_scheduler is None


@pytest.mark.parametrize("value", [{"_component_": "kd_losses.ReverseKLLoss"}, None])
def test_keys_on_the_command_line_replace_a_component(tiny_run, tmp_path, value):
    # torchtune turns `prompt_kd_loss={...}` into prompt_kd_loss._component_={...}.
    given = {"_component_": value, "temperature": 2.0}
    assert check_config(config(tiny_run, tmp_path, prompt_kd_loss=given)).prompt_kd_loss == value


def test_a_checked_config_is_checked_again_without_a_change(tiny_run, tmp_path):
    once = check_config(config(tiny_run, tmp_path, profiler={"enabled": False}))
    assert check_config(once) == once


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": None}, ["model", "must be set"]),
        ({"kd_loss": "kd_losses.ForwardKLLoss"}, ["kd_loss", "_component_"]),
        ({"kd_ratio": 1.5}, ["kd_ratio", "between 0 and 1"]),
        ({"epochs": 0}, ["epochs", "at least 1"]),
        ({"clip_grad_norm": -1.0}, ["clip_grad_norm", "above 0"]),
        ({"loss_scaling": {"manual_scales": {"ir": -1}}}, ["manual_scales.ir", "at least 0"]),
        ({"loss_scaling": {"manual_scales": {"ri": 1}}}, ["manual_scales.ri", "did you mean ir"]),
        ({"token_scope": {"kd": "answers"}}, ["token_scope.kd", "labels or all"]),
        ({"run_val_every_n_steps": 5}, ["run_val_every_n_steps", "dataset_val"]),
        ({"profiler": {"enabeld": True}}, ["profiler.enabeld", "enabled"]),
        ({"output_dir": "${nowhere}"}, ["nowhere"]),
        ({"keep_last_n": 0}, ["keep_last_n"]),
        ({"skip_nonfinite_steps": -1}, ["skip_nonfinite_steps"]),
    ],
)
def test_refusals_name_the_key(tiny_run, tmp_path, changes, words):
    with pytest.raises(ValueError, match=r"^config: .*$") as error:
        check_config(config(tiny_run, tmp_path, **changes))
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher_model": None}, ["teacher_model", "weight 0"]),
        ({"teacher_checkpointer": None}, ["teacher_checkpointer", "weight 0"]),
        ({"kd_loss": None}, ["kd_loss", "must be set"]),
    ],
)
def test_what_a_part_of_the_loss_asks_for_must_be_there(tiny_run, tmp_path, changes, words):
    with pytest.raises(ValueError, match=r"^config: .*$") as error:
        prepare(config(tiny_run, tmp_path, **changes), OneDevice("cpu"))
    assert all(word in str(error.value) for word in words), str(error.value)
