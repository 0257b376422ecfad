"""The check before a run is quick: what only training, scoring or drawing needs is not imported."""

import os
import subprocess
import sys

# Half a second and more each, or of use to none but a finished run.
HEAVY = (
    "matplotlib",
    "lm_eval",
    "transformers.modeling_utils",
    "torch.utils.tensorboard",
    "wandb",
    "peft",
    "gguf",
    "sklearn",
    "kd_analysis.report.compare",
)
# These come with transformers and datasets as soon as a tokenizer or a file is read.
HEAVY_AT_IMPORT = (*HEAVY, "scipy", "accelerate")
PROGRAM = """
import runpy, sys
import kd_training
print("at import:", *[name for name in {at_import} if name in sys.modules])
try:
    runpy.run_module("torchtune._cli.tune", run_name="__main__")
finally:
    print("at the end:", *[name for name in {heavy} if name in sys.modules])
"""


def test_a_dry_run_imports_nothing_that_it_does_not_need(config_file, tmp_path):
    program = PROGRAM.format(at_import=HEAVY_AT_IMPORT, heavy=HEAVY)
    command = [sys.executable, "-c", program, "run", "kd_single_device"]
    command += ["--config", str(config_file), "dry_run=true"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "at import:"
    assert lines[-1] == "at the end:"
    assert "dry run: the config, the data and the files fit" in lines
    assert not (tmp_path / "out").exists()
