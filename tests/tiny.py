"""Small real models, tokenizers and data for tests: made by transformers, random weights."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from hf_models import init_student

SENTENCES = [
    "An assignment binds a name to an object.",
    "The loop runs until its condition is false, and then the else clause runs.",
    "Numbers are immutable.",
    "A class definition makes a class object, which is bound to the name of the class in the "
    "local scope; its methods are functions that take the instance first.",
    "Strings are sequences of code points. They cannot be changed once made.",
    "Modules are imported once.",
    "The expression on the right is evaluated first, then it is bound to each target from left "
    "to right.",
    "A generator yields its values one at a time.",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def save_tokenizer(directory: Path, vocab_size: int = 320, texts: list[str] = SENTENCES) -> int:
    """A byte-level BPE tokenizer with ChatML's template; returns the number of its tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    wrapped.chat_template = CHATML
    wrapped.save_pretrained(directory)
    return len(wrapped)


def save_model(directory: Path, family: str = "llama", seed: int = 0, **sizes: object) -> Path:
    """A random model and its tokenizer as transformers writes them."""
    num_tokens = save_tokenizer(directory)
    config = {
        "vocab_size": num_tokens,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    } | sizes
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIGS[family](**config))
    model.save_pretrained(directory)
    return directory


def save_texts(path: Path, texts: list[str] | None = None) -> Path:
    """A JSONL file with a ``text`` column."""
    lines = (json.dumps({"text": text}) for text in (texts if texts is not None else SENTENCES))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run_config(root: Path, teacher: Path, student: Path, texts: Path) -> dict:
    """A complete config of a small run on the CPU in fp32."""
    dataset = {
        "_component_": "torchtune.datasets.text_completion_dataset",
        "source": "json",
        "data_files": str(texts),
        "column": "text",
        "split": "train",
    }
    return {
        "output_dir": str(root / "out"),
        "model": {
            "_component_": "hf_models.lora_decoder",
            "checkpoint_dir": str(student),
            "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
            "apply_lora_to_mlp": True,
            "lora_rank": 4,
            "lora_alpha": 8,
        },
        "teacher_model": {"_component_": "hf_models.decoder", "checkpoint_dir": str(teacher)},
        "tokenizer": {
            "_component_": "hf_models.tokenizer",
            "checkpoint_dir": str(teacher),
            "max_seq_len": 64,
        },
        "checkpointer": {
            "_component_": "hf_models.HFCheckpointer",
            "checkpoint_dir": str(student),
            "output_dir": "${output_dir}",
        },
        "teacher_checkpointer": {
            "_component_": "hf_models.HFCheckpointer",
            "checkpoint_dir": str(teacher),
        },
        "kd_loss": {"_component_": "kd_losses.ForwardKLLoss"},
        "loss_scaling": {"enabled": True, "manual_scales": {"ce": 1.0, "kd": 1.0, "ir": 3.0}},
        "layer_mapping": "forward",
        "ir_loss": {"_component_": "layer_mapping.CosineLoss"},
        "dataset": dataset,
        "seed": 1,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "epochs": 1,
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-2},
        "device": "cpu",
        "dtype": "fp32",
    }


@dataclass(frozen=True)
class TinyRun:
    """A 6-layer teacher, its 2-layer student, and texts to learn from."""

    directories: dict[str, Path]
    texts: Path

    def config(self, root: Path) -> dict:
        """A complete config whose output goes to ``root/out``."""
        teacher, student = self.directories["teacher"], self.directories["student"]
        return run_config(root, teacher, student, self.texts)


def make_tiny_run(root: Path) -> TinyRun:
    """Makes the models and the texts below ``root``."""
    teacher = save_model(root / "teacher", num_hidden_layers=6)
    student = init_student(teacher, root / "student", num_layers=2)
    return TinyRun({"teacher": teacher, "student": student}, save_texts(root / "texts.jsonl"))
