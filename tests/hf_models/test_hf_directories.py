"""Directories that are complete or absent: the files' modes."""

import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from hf_models.directories import atomic_directory


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_files_get_the_mode_that_the_umask_asks_for(tmp_path, umask, expected):
    before = os.umask(umask)
    try:
        with atomic_directory(tmp_path / "model") as folder:
            save_file({"weight": torch.zeros(3)}, folder / "model.safetensors")
            (folder / "adapter").mkdir()
            save_file({"weight": torch.zeros(3)}, folder / "adapter" / "model.safetensors")
            (folder / "config.json").write_text("{}")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert len(files) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {expected}
