"""A tiny random model of each family, with a tokenizer of its kind, as transformers writes them."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = ["a", "name", "is", "bound", "to", "an", "object", ".", "the", "loop", "runs", "until", "its", "condition", "is", "false", ",", "and", "then", "it", "ends", ".", "strings", "are", "sequences", "of", "code", "points", "and", "numbers", "are", "immutable", ";", "modules", "are", "imported", "once"]
_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
VOCABULARY = 64
PAD, START, END, UNKNOWN = range(4)

_BERT = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 40, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    "num_labels": 3, "type_vocab_size": 2,
}  # fmt: skip
_BART = {
    "d_model": 32, "encoder_layers": 4, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "dropout": 0.0,
    "max_position_embeddings": 40, "decoder_start_token_id": END, "forced_eos_token_id": None,
}  # fmt: skip
_LLAMA = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64,
}  # fmt: skip

# Family → task, config class, its sizes, and those of a student of other depth and width.
FAMILIES: dict[str, tuple[str, str, dict, dict]] = {
    "bert": ("sequence_classification", "BertConfig", _BERT, {"hidden_size": 24, "num_hidden_layers": 2}),
    "roberta": ("sequence_classification", "RobertaConfig", _BERT, {"hidden_size": 24, "num_hidden_layers": 2}),
    "distilbert": (
        "sequence_classification", "DistilBertConfig",
        {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 40,
         "dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0, "num_labels": 3},
        {"dim": 24, "n_layers": 2},
    ),
    "bart_classifier": (
        "sequence_classification", "BartConfig", _BART | {"num_labels": 3},
        {"d_model": 24, "encoder_layers": 2, "decoder_layers": 1},
    ),
    "qwen3_classifier": ("sequence_classification", "Qwen3Config", _LLAMA | {"num_labels": 3, "head_dim": 8}, {"hidden_size": 24, "num_hidden_layers": 2}),
    "bart": ("seq2seq_lm", "BartConfig", _BART, {"d_model": 24, "encoder_layers": 2, "decoder_layers": 1}),
    "t5": (
        "seq2seq_lm", "T5Config",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 4, "num_decoder_layers": 2, "num_heads": 4,
         "dropout_rate": 0.0, "decoder_start_token_id": PAD, "tie_word_embeddings": True},
        {"d_model": 24, "num_layers": 2, "num_decoder_layers": 1},
    ),
    "bloom": ("causal_lm", "BloomConfig", {"hidden_size": 32, "n_layer": 4, "n_head": 4}, {"hidden_size": 24, "n_layer": 2}),
    "gpt2": (
        "causal_lm", "GPT2Config",
        {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        {"n_embd": 24, "n_layer": 2},
    ),
    "gemma2": (
        "causal_lm", "Gemma2Config",
        _LLAMA | {"head_dim": 8, "final_logit_softcapping": 2.0, "sliding_window": 8, "query_pre_attn_scalar": 8},
        {"hidden_size": 24, "num_hidden_layers": 2},
    ),
    "mistral": ("causal_lm", "MistralConfig", _LLAMA | {"sliding_window": 8}, {"hidden_size": 24, "num_hidden_layers": 2}),
    "mixtral": (
        "causal_lm", "MixtralConfig", _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2},
        {"hidden_size": 24, "num_hidden_layers": 2},
    ),
    "cohere": ("causal_lm", "CohereConfig", _LLAMA | {"logit_scale": 0.25}, {"hidden_size": 24, "num_hidden_layers": 2}),
    "granite": ("causal_lm", "GraniteConfig", _LLAMA | {"logits_scaling": 4.0}, {"hidden_size": 24, "num_hidden_layers": 2}),
    "qwen3": ("causal_lm", "Qwen3Config", _LLAMA | {"head_dim": 8}, {"hidden_size": 24, "num_hidden_layers": 2}),
}  # fmt: skip
_AUTO = {
    "causal_lm": "AutoModelForCausalLM",
    "seq2seq_lm": "AutoModelForSeq2SeqLM",
    "sequence_classification": "AutoModelForSequenceClassification",
}


def auto_class(family: str):
    """transformers' own Auto class for a family's task."""
    return getattr(transformers, _AUTO[FAMILIES[family][0]])


def save_word_tokenizer(directory: Path, token_types: bool = False) -> None:
    """Whole words, ``<s> text </s>``; pairs have token types if asked for."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=VOCABULARY, special_tokens=_SPECIAL)
    tokenizer.train_from_iterator([" ".join(WORDS)], trainer)
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
    directory: Path, family: str, seed: int = 0, student: bool = False, **sizes
) -> Path:
    """A random model of a family and its tokenizer; ``student``: of other depth and width."""
    _, kind, own, other = FAMILIES[family]
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
