"""How a directory keeps a model's weights, whoever has written its layers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor


class Layout(Protocol):
    """Between the files of a Hugging Face directory and the names of a module's state dict."""

    def check(self, directory: Path, files: Sequence[str] | None) -> list[str]:
        """Look at config and file headers without reading weights.

        Args:
            directory: A model directory.
            files: Its safetensors files; None: those that transformers loads.

        Returns:
            What a person should know, such as weights that are not there and start at random.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is corrupt, or a tensor is missing, unexpected or misshapen.
        """

    def read(self, directory: Path, files: Sequence[str] | None) -> dict[str, Tensor]:
        """The weights under the module's names, in the dtype of the files.

        Raises:
            FileNotFoundError: See `check`.
            ValueError: See `check`.
        """

    def write(
        self,
        weights: Mapping[str, Tensor],
        source: Path,
        folder: Path,
        max_shard_size: int | str,
        tokenizer_dir: Path,
    ) -> None:
        """Write weights, config, tokenizer and companions into a folder.

        Args:
            weights: Without an adapter, under the module's names.
            source: Directory whose config and companions they go with.
            folder: Where to write.
            max_shard_size: Larger models are saved in files of at most this size.
            tokenizer_dir: Directory of the tokenizer.

        Raises:
            ValueError: If the weights are not those that the config asks for.
            OSError: If a file cannot be written.
        """

    def write_adapter(
        self,
        adapter: Mapping[str, Tensor],
        config: Mapping[str, Any],
        base_dir: Path | None,
        folder: Path,
    ) -> None:
        """Write an adapter in PEFT's format.

        Raises:
            OSError: If a file cannot be written.
        """
