"""What is wrong with a dataset's node is said before anything is built."""

import pytest
from omegaconf import OmegaConf

from kd_config.check import check_config

TEXTS = "torchtune.datasets.text_completion_dataset"
PAIRS = "kd_data.prompt_completion_dataset"


def mixed(*nodes):
    return {"_component_": "kd_data.mixture", "weights": [1] * len(nodes), "datasets": [*nodes]}


def node(component=PAIRS, **arguments):
    return {"_component_": component, **arguments}


def refusal(tiny_run, tmp_path, **changes):
    with pytest.raises(ValueError, match=r"^config: .*$") as error:
        check_config(OmegaConf.create(tiny_run.config(tmp_path) | changes))
    return str(error.value)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (
            mixed(node(), node(data_flies="x")),
            f"dataset.datasets[1].data_flies is no argument of {PAIRS}; did you mean data_files?",
        ),
        (
            mixed(node("kd_data.lm_eval_task", task="boolq", num_fewshots=2)),
            "dataset.datasets[0].num_fewshots is no argument of kd_data.lm_eval_task; "
            "did you mean num_fewshot?",
        ),
        (
            mixed({"_componet_": PAIRS}),
            "dataset.datasets[0] has no _component_; did you mean _componet_?",
        ),
        (mixed(node("kd_data.absent")), "dataset.datasets[0]._component_ 'kd_data.absent'"),
        (mixed("boolq"), "dataset.datasets[0] must name a _component_, not 'boolq'"),
        (
            mixed(mixed(node(splt="train"))),
            f"dataset.datasets[0].datasets[0].splt is no argument of {PAIRS}; did you mean split?",
        ),
    ],
)
def test_a_mixtures_datasets_are_checked_as_any_other(tiny_run, tmp_path, dataset, words):
    assert refusal(tiny_run, tmp_path, dataset=dataset).startswith(f"config: {words}")
    listed = refusal(tiny_run, tmp_path, dataset=[node(), dataset])
    assert listed.startswith(f"config: {words.replace('dataset.', 'dataset[1].', 1)}")


@pytest.mark.parametrize("key", ["dataset", "dataset_val"])
@pytest.mark.parametrize("component", [TEXTS, PAIRS, "torchtune.datasets.alpaca_cleaned_dataset"])
def test_streaming_is_not_needed(tiny_run, tmp_path, key, component):
    streamed = node(component, streaming=True)
    nodes = {
        f"{key}.streaming": streamed,
        f"{key}[1].streaming": [node(component), streamed],
        f"{key}.datasets[0].streaming": mixed(streamed),
    }
    for name, value in nodes.items():
        message = refusal(tiny_run, tmp_path, **{key: value})
        assert message.startswith(f"config: {name} must be left out"), message
        assert "memory-mapped" in message


def test_no_streaming_is_no_mistake(tiny_run, tmp_path):
    config = tiny_run.config(tmp_path)
    config["dataset"]["streaming"] = False
    assert check_config(OmegaConf.create(config)).dataset.streaming is False
