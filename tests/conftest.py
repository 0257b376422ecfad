from pathlib import Path

import pytest

from hf_models.embedded import fetch_embedded_model

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def embedded_model_dir() -> Path:
    """SmolLM2-135M-Instruct, downloaded and converted by the first run that needs it."""
    return fetch_embedded_model(REPOSITORY / "models" / "SmolLM2-135M-Instruct")
