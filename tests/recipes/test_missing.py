"""A file or directory that is not there: where it was looked for, and how to make it."""

import pytest
from omegaconf import OmegaConf


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty folder to start from."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path / "empty"


@pytest.fixture
def fails(tune_run):
    """Runs a recipe that cannot work; returns its one line."""

    def run(config, *overrides, recipe="kd_single_device"):
        code, _, err = tune_run(recipe, config, *overrides)
        assert code == 1
        assert "Traceback" not in err
        assert err.count("error: ") == 1
        return err.strip().splitlines()[-1]

    return run


@pytest.mark.parametrize("given", ["quickstart", "quickstrat.yaml", "configs/quikstart.yml"])
@pytest.mark.parametrize("recipe", ["kd_single_device", "kd_init_student", "kd_analyze"])
def test_a_config_of_nearly_that_name_is_offered(empty, fails, given, recipe):
    (empty / "configs").mkdir()
    for name in ("quickstart", "qwen3_forward"):
        (empty / "configs" / f"{name}.yaml").write_text("seed: 1\n")
    line = fails(given, recipe=recipe)
    assert line == (
        f"error: --config {given}: no such file in {empty}; did you mean configs/quickstart.yaml?"
    )


def test_no_config_of_that_name_anywhere(empty, fails):
    line = fails("configs/quickstart.yaml")
    assert f"--config configs/quickstart.yaml: no such file in {empty}; " in line
    assert "start from the folder" in line
    assert "no such file; check the path" in fails("/no/such.yaml")


def test_a_folder_for_a_config(empty, fails):
    (empty / "configs").mkdir()
    (empty / "configs" / "mine.yaml").write_text("seed: 1\n")
    line = fails("configs")
    assert line == (
        "error: --config configs: a directory; name one of the YAML files in it: configs/mine.yaml"
    )


QUICKSTART = {
    "model.checkpoint_dir=models/smollm2-15-layers": (
        "tune run kd_init_student --config configs/init_student.yaml"
    ),
    "teacher_model.checkpoint_dir=models/SmolLM2-135M-Instruct": (
        "python -m hf_models.embedded --output models/SmolLM2-135M-Instruct"
    ),
    "tokenizer.checkpoint_dir=models/SmolLM2-135M-Instruct": (
        "python -m hf_models.embedded --output models/SmolLM2-135M-Instruct"
    ),
    "dataset.data_files=data/reference_manual/train.jsonl": (
        "python -m kd_data.reference_manual --output data/reference_manual"
    ),
    "dataset={_component_: kd_data.prompt_completion_dataset, data_files: "
    "data/reference_manual/train.jsonl}": (
        "python -m kd_data.reference_manual --output data/reference_manual"
    ),
}


@pytest.mark.parametrize("override", QUICKSTART)
def test_what_makes_the_quickstarts_directories_is_named(empty, config_file, fails, override):
    line = fails(config_file, override)
    assert f"in {empty}; make it by `{QUICKSTART[override]}` or `make quickstart`" in line
    assert override.partition("=")[0].partition(".")[0] in line


DOWNLOADS = {
    "model.checkpoint_dir=models/all-MiniLM-L6-v2": (
        "python -m hf_models.embedded --model all-MiniLM-L6-v2 --output models/all-MiniLM-L6-v2"
    ),
    "dataset.data_files=data/movie_snippets/train.jsonl": (
        "python -m kd_data.movie_snippets --output data/movie_snippets"
    ),
}


@pytest.mark.parametrize("override", DOWNLOADS)
def test_what_makes_other_directories_is_named(empty, config_file, fails, override):
    line = fails(config_file, override)
    assert line.endswith(f"; make it by `{DOWNLOADS[override]}` or `make quickstart-bert`")


def test_the_teacher_of_a_student_is_made_likewise(empty, fails):
    OmegaConf.save({"teacher_dir": "models/SmolLM2-135M-Instruct", "output_dir": "x",
                    "num_layers": 2}, empty / "init.yaml")  # fmt: skip
    line = fails(empty / "init.yaml", recipe="kd_init_student")
    assert "python -m hf_models.embedded --output models/SmolLM2-135M-Instruct" in line


def test_a_directory_of_ones_own(empty, config_file, fails):
    line = fails(config_file, "model.checkpoint_dir=models/mine")
    assert f"models/mine: no such model directory in {empty}; check the path, or start" in line
    # A pattern is for the reader of the files, and so is a name on a hub.
    assert "no such file" not in fails(config_file, "dataset.data_files=data/*.jsonl")
