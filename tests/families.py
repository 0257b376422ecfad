"""A tiny random model of each family, with a tokenizer of its kind, as transformers writes them."""

from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

TEXT = (
    "a name is bound to an object . the loop runs until its condition is false , and then it ends "
    ". strings are sequences of code points and numbers are immutable ; modules are imported once"
)
VOCABULARY = 64
PAD, START, END, UNKNOWN = range(4)
_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
_CAUSAL, _SEQ2SEQ, _CLASSES = "causal_lm", "seq2seq_lm", "sequence_classification"
_AUTO = {
    _CAUSAL: "AutoModelForCausalLM",
    _SEQ2SEQ: "AutoModelForSeq2SeqLM",
    _CLASSES: "AutoModelForSequenceClassification",
}

_BERT = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 40, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    "num_labels": 3, "type_vocab_size": 2,
}  # fmt: skip
_DISTILBERT = {
    "dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 40,
    "dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0, "num_labels": 3,
}  # fmt: skip
_BART = {
    "d_model": 32, "encoder_layers": 4, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "dropout": 0.0,
    "max_position_embeddings": 40, "decoder_start_token_id": END, "forced_eos_token_id": None,
}  # fmt: skip
_T5 = {
    "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 4, "num_decoder_layers": 2, "num_heads": 4,
    "dropout_rate": 0.0, "decoder_start_token_id": PAD, "tie_word_embeddings": True,
}  # fmt: skip
_LLAMA = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64,
}  # fmt: skip
_GPT2 = {
    "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64, "resid_pdrop": 0.0,
    "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
_GEMMA = {"head_dim": 8, "final_logit_softcapping": 2.0, "sliding_window": 8,
          "query_pre_attn_scalar": 8}  # fmt: skip
_NARROW = {"hidden_size": 24, "num_hidden_layers": 2}
_NARROW_BART = {"d_model": 24, "encoder_layers": 2, "decoder_layers": 1}


class Family(NamedTuple):
    """What a family's models are made of.

    Attributes:
        task: What they predict.
        config: transformers' class of their configs.
        sizes: Of a teacher.
        student: What is otherwise in a student of another depth and width.
        blocks: Stack → where transformers has its blocks.
    """

    task: str
    config: str
    sizes: dict[str, Any]
    student: dict[str, Any]
    blocks: dict[str, str]


_LAYERS = {"decoder": "model.layers"}
_BOTH = {"encoder": "model.encoder.layers", "decoder": "model.decoder.layers"}
_BLOOM = {"hidden_size": 32, "n_layer": 4, "n_head": 4}
FAMILIES = {
    "bert": Family(_CLASSES, "BertConfig", _BERT, _NARROW, {"encoder": "bert.encoder.layer"}),
    "roberta": Family(
        _CLASSES, "RobertaConfig", _BERT, _NARROW, {"encoder": "roberta.encoder.layer"}
    ),
    "distilbert": Family(
        _CLASSES,
        "DistilBertConfig",
        _DISTILBERT,
        {"dim": 24, "n_layers": 2},
        {"encoder": "distilbert.transformer.layer"},
    ),
    "bart_classifier": Family(
        _CLASSES, "BartConfig", _BART | {"num_labels": 3}, _NARROW_BART, _BOTH
    ),
    "qwen3_classifier": Family(
        _CLASSES,
        "Qwen3Config",
        _LLAMA | {"num_labels": 3, "head_dim": 8},
        _NARROW,
        {"encoder": "model.layers"},
    ),
    "bart": Family(_SEQ2SEQ, "BartConfig", _BART, _NARROW_BART, _BOTH),
    "t5": Family(
        _SEQ2SEQ,
        "T5Config",
        _T5,
        {"d_model": 24, "num_layers": 2, "num_decoder_layers": 1},
        {"encoder": "encoder.block", "decoder": "decoder.block"},
    ),
    "bloom": Family(
        _CAUSAL,
        "BloomConfig",
        _BLOOM,
        {"hidden_size": 24, "n_layer": 2},
        {"decoder": "transformer.h"},
    ),
    "gpt2": Family(
        _CAUSAL, "GPT2Config", _GPT2, {"n_embd": 24, "n_layer": 2}, {"decoder": "transformer.h"}
    ),
    "gemma2": Family(_CAUSAL, "Gemma2Config", _LLAMA | _GEMMA, _NARROW, _LAYERS),
    "mistral": Family(_CAUSAL, "MistralConfig", _LLAMA | {"sliding_window": 8}, _NARROW, _LAYERS),
    "mixtral": Family(
        _CAUSAL,
        "MixtralConfig",
        _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2},
        _NARROW,
        _LAYERS,
    ),
    "cohere": Family(_CAUSAL, "CohereConfig", _LLAMA | {"logit_scale": 0.25}, _NARROW, _LAYERS),
    "granite": Family(_CAUSAL, "GraniteConfig", _LLAMA | {"logits_scaling": 4.0}, _NARROW, _LAYERS),
    "qwen3": Family(_CAUSAL, "Qwen3Config", _LLAMA | {"head_dim": 8}, _NARROW, _LAYERS),
}


def auto_class(family: str) -> Any:
    """transformers' own Auto class for a family's task."""
    return getattr(transformers, _AUTO[FAMILIES[family].task])


def save_word_tokenizer(directory: Path, token_types: bool = False) -> None:
    """Whole words, ``<s> text </s>``; pairs have token types if asked for."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=VOCABULARY, special_tokens=_SPECIAL)
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[("<s>", START), ("</s>", END)],
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_input_names=names if token_types else [names[0], names[2]],
    ).save_pretrained(directory)


def save_family(
    directory: Path, family: str, seed: int = 0, student: bool = False, **sizes: Any
) -> Path:
    """A random model of a family and its tokenizer; ``student``: of other depth and width."""
    _, kind, own, other, _ = FAMILIES[family]
    common = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": START,
              "eos_token_id": END, "initializer_range": 0.1, "init_std": 0.1}  # fmt: skip
    config = getattr(transformers, kind)(**(common | own | (other if student else {}) | sizes))
    torch.manual_seed(seed)
    model = auto_class(family).from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # which start at 0, where none is missed
            torch.nn.init.normal_(parameter, std=0.1)
    if hasattr(model, "final_logits_bias"):
        torch.nn.init.normal_(model.final_logits_bias)
    model.save_pretrained(directory)
    save_word_tokenizer(directory, token_types=family == "bert")
    return directory


class Samples(Dataset):
    """Random samples of a task, of unequal lengths; a component of a config."""

    def __init__(
        self, tokenizer: Any, task: str, size: int = 8, seed: int = 0, packed: bool = False
    ) -> None:
        assert not packed, "packed is for configs that are refused"
        random = Random(seed)
        self._samples = [self._sample(random, task) for _ in range(size)]

    def _sample(self, random: Random, task: str) -> dict[str, list[int]]:
        def text(longest: int) -> list[int]:
            return random.choices(range(4, VOCABULARY), k=random.randint(3, longest))

        tokens = [START, *text(14), END]
        if task == _CAUSAL:
            hidden = random.randint(0, 3)
            return {"tokens": tokens, "labels": [-100] * hidden + tokens[hidden:]}
        if task == _SEQ2SEQ:
            return {"tokens": tokens, "labels": [START, *text(8), END]}
        return {"tokens": tokens, "labels": [random.randrange(3)]}

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self._samples[index]


def mapping(family: str, spec: Any = "forward") -> Any:
    """A ``layer_mapping`` for every stack of a family."""
    blocks = FAMILIES[family].blocks
    return spec if len(blocks) == 1 else dict.fromkeys(blocks, spec)


def family_config(root: Path, family: str, teacher: Path, student: Path) -> dict[str, Any]:
    """A complete config of a small run on the CPU in fp32: all weights, plain gradient descent."""
    model = {"_component_": "hf_models.auto_model", "checkpoint_dir": str(student)}
    checkpointer = {"_component_": "hf_models.HFCheckpointer", "checkpoint_dir": str(student)}
    return {
        "output_dir": str(root / "out"),
        "model": model,
        "teacher_model": model | {"checkpoint_dir": str(teacher)},
        "tokenizer": {"_component_": "hf_models.tokenizer", "checkpoint_dir": str(teacher)},
        "checkpointer": checkpointer | {"output_dir": "${output_dir}"},
        "teacher_checkpointer": checkpointer | {"checkpoint_dir": str(teacher)},
        "kd_loss": {"_component_": "kd_losses.ForwardKLLoss"},
        "loss_scaling": {"enabled": True, "manual_scales": {"ce": 1.0, "kd": 1.0, "ir": 3.0}},
        "layer_mapping": mapping(family),
        "ir_loss": {"_component_": "layer_mapping.CosineLoss"},
        "dataset": {"_component_": "families.Samples", "task": FAMILIES[family].task},
        "seed": 1,
        "shuffle": False,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "epochs": 1,
        "optimizer": {"_component_": "torch.optim.SGD", "lr": 1.0},
        "device": "cpu",
        "dtype": "fp32",
    }
