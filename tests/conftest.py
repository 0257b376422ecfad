import os
from collections.abc import Callable
from pathlib import Path

import families
import pytest
import tiny
import torch
from filelock import FileLock
from hypothesis import settings

from hf_models.embedded import fetch_embedded_model
from hf_models.embedded_bert import fetch_embedded_bert
from kd_data.movie_snippets import write_movie_snippets

ROOT = Path(__file__).parents[1]
EMBEDDED = ROOT / "models" / "SmolLM2-135M-Instruct"
EMBEDDED_BERT = ROOT / "models" / "all-MiniLM-L6-v2"
SNIPPETS = ROOT / "data" / "movie_snippets"

# No deadlines, and the same examples each time.
settings.load_profile("ci")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One for each core that this process may use; 0, which is no worker at all, for a single."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores if cores and cores > 1 else 0


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Whatever other tests have drawn before."""
    torch.manual_seed(0)


def made_once(make: Callable[[Path], Path], directory: Path) -> Path:
    """Downloaded by the first run that needs it; runs side by side wait for it."""
    directory.parent.mkdir(exist_ok=True)
    with FileLock(directory.with_suffix(".lock")):
        return make(directory)


@pytest.fixture(scope="session")
def embedded_model_dir() -> Path:
    """SmolLM2-135M-Instruct."""
    return made_once(fetch_embedded_model, EMBEDDED)


@pytest.fixture(scope="session")
def embedded_bert_dir() -> Path:
    """all-MiniLM-L6-v2."""
    return made_once(fetch_embedded_bert, EMBEDDED_BERT)


@pytest.fixture(scope="session")
def movie_snippets_dir() -> Path:
    """Rated sentences of film reviews."""
    return made_once(write_movie_snippets, SNIPPETS)


@pytest.fixture
def local_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip can see."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return index


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyRun:
    """Small models, a tokenizer and texts."""
    return tiny.make_tiny_run(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def directories(tmp_path_factory):
    """Family → its teacher's and its student's directory, each made once."""
    root, made = tmp_path_factory.mktemp("families"), {}

    def make(family):
        if family not in made:
            teacher = families.save_family(root / family / "teacher", family)
            student = families.save_family(root / family / "student", family, 1, student=True)
            made[family] = teacher, student
        return made[family]

    return make
