"""Directories of transformers models, read and written by transformers itself."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_models.directories import (
    copy_companions,
    copy_tokenizer,
    portable_path,
    without_machine_paths,
)
from hf_models.export import write_json, write_tensors
from hf_models.raw_config import read_raw_config
from hf_models.transformers_model.quiet import quiet
from hf_models.weights import and_more, read_header, weight_files

_NUMBERED = re.compile(r"\.\d+\.")


class TransformersLayout:
    """See the protocol `hf_models.layout.Layout`.

    Args:
        kind: The model's class.
        config: Its config.
        stacks: Stack → path of its blocks.
        new_modules: The modules of a classifier that a directory may be without.
    """

    def __init__(
        self, kind: Any, config: Any, stacks: Mapping[str, str], new_modules: Sequence[str]
    ) -> None:
        self._kind, self._config = kind, config
        self._stacks, self._new_modules = stacks, new_modules

    def check(self, directory: Path, files: Sequence[str] | None) -> list[str]:
        """See the protocol."""
        for path in weight_files(directory, files):
            read_header(path, floats_only=False)  # some keep positions as a buffer
        _, report = self._load(directory, files, device_map="meta")
        return self._examine(directory, report)

    def read(self, directory: Path, files: Sequence[str] | None) -> dict[str, Tensor]:
        """See the protocol; what is new comes from torch's global random numbers."""
        model, report = self._load(directory, files)
        self._examine(directory, report)
        return model.state_dict()

    def _load(
        self, directory: Path, files: Sequence[str] | None, **options: Any
    ) -> tuple[Any, dict[str, Any]]:
        if files is not None:
            raise ValueError(
                f"checkpoint_files: {self._kind.__name__} loads what its directory says; leave it "
                "out"
            )
        with quiet():
            try:
                return self._kind.from_pretrained(
                    directory,
                    config=self._config,
                    dtype="auto",
                    local_files_only=True,
                    use_safetensors=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # they are refused in our words
                    **options,
                )
            except (OSError, RuntimeError, KeyError) as err:
                raise ValueError(f"{directory}: cannot be loaded: {_line(err)}") from err

    def _examine(self, directory: Path, report: Mapping[str, Any]) -> list[str]:
        """Refuse what is not as the config says; tell what is new."""
        for name, found, wanted in sorted(report["mismatched_keys"]):
            remedy = ""
            if name.startswith(tuple(f"{one}." for one in self._new_modules)):
                remedy = f"; set num_labels: {found[0]}, or remove its head"
            raise ValueError(
                f"{directory}: tensor {name} has shape {list(found)}, but the model asks for "
                f"{list(wanted)}{remedy}"
            )
        # A head for another task is of no use here; more blocks than the config says are a mistake.
        numbered = filter(_NUMBERED.search, report["unexpected_keys"])
        extra = sorted(name for name in numbered if not name.endswith("rotary_emb.inv_freq"))
        if extra:
            raise ValueError(
                f"{directory}: unexpected tensor {extra[0]}{and_more(extra)}; config.json says "
                "that there is no such block"
            )
        missing = sorted(report["missing_keys"])
        lost = [name for name in missing if not self._may_be_new(name)]
        if lost:
            raise ValueError(f"{directory}: tensor {lost[0]} is missing{and_more(lost)}")
        if not missing:
            return []
        return [f"{directory} has no {', '.join(missing)}: initialised at random, by seed"]

    def _may_be_new(self, name: str) -> bool:
        parts = name.split(".")
        return bool(self._new_modules) and (parts[0] in self._new_modules or "pooler" in parts)

    def set_habits(self, module: Any, directory: Path) -> None:
        """Have a module generate as its directory's generation_config.json says."""
        from transformers import GenerationConfig

        if module.can_generate() and (directory / "generation_config.json").is_file():
            module.generation_config = GenerationConfig.from_pretrained(
                directory, local_files_only=True
            )

    def write(
        self,
        weights: Mapping[str, Tensor],
        source: Path,
        folder: Path,
        max_shard_size: int | str,
        tokenizer_dir: Path,
    ) -> None:
        """See the protocol; ``save_pretrained`` writes the weights."""
        from accelerate import init_empty_weights

        dtype = next(t.dtype for t in weights.values() if t.is_floating_point())
        with torch.device("cpu"), init_empty_weights(include_buffers=False), quiet():
            model = self._kind._from_config(self._config, dtype=dtype)
            plain = {name: tensor.contiguous() for name, tensor in weights.items()}
            model.save_pretrained(folder, state_dict=plain, max_shard_size=max_shard_size)
        config = read_raw_config(folder)
        write_json(folder / "config.json", without_machine_paths(config))
        copy_companions(source, folder)
        copy_tokenizer(tokenizer_dir, folder)

    def write_adapter(
        self,
        adapter: Mapping[str, Tensor],
        config: Mapping[str, Any],
        base_dir: Path | None,
        folder: Path,
    ) -> None:
        """See the protocol; PEFT writes its config."""
        from peft import LoraConfig

        named = None if base_dir is None else portable_path(base_dir)
        folder.mkdir(parents=True, exist_ok=True)
        settings = LoraConfig(**{**config, "base_model_name_or_path": named})
        settings.inference_mode = True
        settings.save_pretrained(str(folder))
        write_tensors(adapter, folder / "adapter_model.safetensors")


def _line(err: Exception) -> str:
    return " ".join(str(err).split())[:300]
