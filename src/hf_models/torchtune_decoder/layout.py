"""Llama, Qwen2 and Qwen3 directories under torchtune's names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_models.export import write_adapter, write_model
from hf_models.torchtune_decoder.names import hf_name, tune_name
from hf_models.weights import find_tensors, read_tensors


class DecoderLayout:
    """See the protocol `hf_models.layout.Layout`."""

    def check(self, directory: Path, files: Sequence[str] | None) -> list[str]:
        """See the protocol; nothing may be missing."""
        find_tensors(directory, files)
        return []

    def read(self, directory: Path, files: Sequence[str] | None) -> dict[str, Tensor]:
        """See the protocol; memory-mapped."""
        tensors = read_tensors(find_tensors(directory, files))
        return {tune_name(name): tensor for name, tensor in tensors.items()}

    def write(
        self,
        weights: Mapping[str, Tensor],
        source: Path,
        folder: Path,
        max_shard_size: int | str,
        tokenizer_dir: Path,
    ) -> None:
        """See the protocol."""
        tensors = {hf_name(name): tensor for name, tensor in weights.items()}
        write_model(tensors, source, folder, {}, max_shard_size, tokenizer_dir)

    def write_adapter(
        self,
        adapter: Mapping[str, Tensor],
        config: Mapping[str, Any],
        base_dir: Path | None,
        folder: Path,
    ) -> None:
        """See the protocol."""
        write_adapter(adapter, config, base_dir, folder)
