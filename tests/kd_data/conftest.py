"""A small real tokenizer, for every test of this room."""

from pathlib import Path

import pytest
import tiny

from hf_models import HFTokenizer


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    tiny.save_tokenizer(directory)
    return directory


@pytest.fixture
def tokenizer(tokenizer_dir) -> HFTokenizer:
    return HFTokenizer(tokenizer_dir)
