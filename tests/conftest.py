import os
from pathlib import Path

import pytest
import tiny
import torch
from filelock import FileLock
from hypothesis import settings

from hf_models.embedded import fetch_embedded_model

EMBEDDED = Path(__file__).parents[1] / "models" / "SmolLM2-135M-Instruct"

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


@pytest.fixture(scope="session")
def embedded_model_dir() -> Path:
    """SmolLM2-135M-Instruct, downloaded and converted by the first run that needs it.

    Runs side by side wait for it.
    """
    EMBEDDED.parent.mkdir(exist_ok=True)
    with FileLock(EMBEDDED.with_suffix(".lock")):
        return fetch_embedded_model(EMBEDDED)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyRun:
    """Small models, a tokenizer and texts."""
    return tiny.make_tiny_run(tmp_path_factory.mktemp("tiny"))
