"""torchtune's checkpointer protocol on Hugging Face directories."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torchtune.training import ADAPTER_CONFIG, ADAPTER_KEY, MODEL_KEY

from hf_models.directories import atomic_directory, copy_tokenizer
from hf_models.ends import write_end_tokens
from hf_models.export import check_shard_size
from hf_models.layout import Layout
from hf_models.torchtune_decoder.layout import DecoderLayout


class HFCheckpointer:
    """Loads and saves the safetensors of a Hugging Face directory.

    It belongs to the models of this room: :func:`~hf_models.decoder` and
    :func:`~hf_models.lora_decoder`, and, with their ``layout``, :func:`~hf_models.auto_model` and
    :func:`~hf_models.lora_auto_model`. torchtune's Llama builders expect permuted weights and need
    torchtune's own checkpointer.

    Args:
        checkpoint_dir: Directory with config.json and safetensors.
        checkpoint_files: Names of the files to load; by default those that transformers loads.
        output_dir: Where :meth:`save_checkpoint` writes.
        model_type: Accepted and ignored: config.json says it.
        adapter_checkpoint: Not supported, as the next three: they restore the state of torchtune's
            own recipes.
        recipe_checkpoint: See ``adapter_checkpoint``.
        resume_from_checkpoint: See ``adapter_checkpoint``.
        should_load_recipe_state: See ``adapter_checkpoint``.
        max_shard_size: Larger models are saved in files of at most this size.

    Attributes:
        tokenizer_dir: Directory of the tokenizer that is saved beside the weights: that of
            ``checkpoint_dir``, until whoever trains with another one sets it.
        base_dir: The directory that a saved adapter names as its base; None for none.
        end_tokens: What the saved model ends a text with, where that is not what ``checkpoint_dir``
            says.
        layout: What the weights are called: as in torchtune's decoders, until whoever builds
            another model sets its own.

    Raises:
        ValueError: If asked to restore the state of a recipe, or ``max_shard_size`` is no size.
    """

    def __init__(
        self,
        checkpoint_dir: str | Path,
        checkpoint_files: Sequence[str] | None = None,
        output_dir: str | Path | None = None,
        model_type: str | None = None,
        *,
        adapter_checkpoint: str | None = None,
        recipe_checkpoint: str | None = None,
        resume_from_checkpoint: bool = False,
        should_load_recipe_state: bool = False,
        max_shard_size: int | str = "5GB",
    ) -> None:
        if (
            adapter_checkpoint
            or recipe_checkpoint
            or resume_from_checkpoint
            or should_load_recipe_state
        ):
            raise ValueError("HFCheckpointer: restores weights only, not the state of a recipe")
        self.checkpoint_dir = self.tokenizer_dir = Path(checkpoint_dir)
        self.base_dir: Path | None = self.checkpoint_dir
        self.checkpoint_files = None if checkpoint_files is None else list(checkpoint_files)
        self.output_dir = None if output_dir is None else Path(output_dir)
        check_shard_size(max_shard_size)
        self.max_shard_size = max_shard_size
        self.end_tokens: frozenset[int] | None = None
        self.layout: Layout = DecoderLayout()

    def check(self) -> list[str]:
        """Checks config, file headers, tensor names and shapes without reading weights.

        Returns:
            What a person should know, such as weights that are not there and start at random.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is corrupt, or a tensor is missing, unexpected or misshapen.
        """
        return self.layout.check(self.checkpoint_dir, self.checkpoint_files)

    def load_checkpoint(self) -> dict[str, dict[str, torch.Tensor]]:
        """The weights under the module's names, in the dtype of the files.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is corrupt, or a tensor is missing, unexpected or misshapen.
        """
        return {MODEL_KEY: self.layout.read(self.checkpoint_dir, self.checkpoint_files)}

    def save_checkpoint(
        self,
        state_dict: Mapping[str, Any],
        epoch: int,
        intermediate_checkpoint: bool = False,
        adapter_only: bool = False,
        *,
        dirname: str | None = None,
    ) -> None:
        """Writes ``output_dir/epoch_{epoch}``, which is afterwards complete or as it was before.

        The merged model lies in that directory and the adapter, if any, in ``adapter/`` below it:
        next to merged weights transformers would apply it a second time. The tokenizer lies beside
        the merged model, or beside the adapter where that is alone.

        Args:
            state_dict: The model under ``MODEL_KEY``; with LoRA also ``ADAPTER_KEY`` (its
                matrices) and ``ADAPTER_CONFIG`` (``r``, ``lora_alpha``, ``target_modules``). All
                under the module's names.
            epoch: Number of the epoch.
            intermediate_checkpoint: Accepted and ignored: the state of a recipe is not saved here.
            adapter_only: Write ``adapter/`` only.
            dirname: Directory to write instead of ``epoch_{epoch}``.

        Raises:
            ValueError: If there is no ``output_dir``, a part is missing, or the weights are not
                those that the config asks for.
            OSError: If the directory cannot be written.
        """
        if self.output_dir is None:
            raise ValueError("HFCheckpointer: set output_dir to save")
        target = self.output_dir / (dirname or f"epoch_{epoch}")
        adapter = state_dict.get(ADAPTER_KEY)
        if adapter_only:
            if not adapter:
                raise ValueError("HFCheckpointer: there is no adapter to save")
            with atomic_directory(target / "adapter") as folder:
                config = state_dict[ADAPTER_CONFIG]
                self.layout.write_adapter(adapter, config, self.base_dir, folder)
                copy_tokenizer(self.tokenizer_dir, folder)
            return
        with atomic_directory(target) as folder:
            self.layout.write(
                state_dict[MODEL_KEY],
                self.checkpoint_dir,
                folder,
                self.max_shard_size,
                self.tokenizer_dir,
            )
            if self.end_tokens is not None:
                write_end_tokens(folder, self.end_tokens)
            if adapter:
                config = state_dict[ADAPTER_CONFIG]
                self.layout.write_adapter(adapter, config, self.base_dir, folder / "adapter")
