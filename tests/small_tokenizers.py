"""Real fast tokenizers of several kinds, trained on a few words."""

import json
from pathlib import Path

import tiny
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_models import HFTokenizer

TEXTS = [
    *tiny.SENTENCES,
    "Café, crème brûlée, naïve façade: élan.",
    "漢字の読み方は難しい。漢字かな交じり文。",
    "Emoji 🙂 and 👍🏽, 🙂🙂 again.",
]
LLAMA = (
    "{% for m in messages %}<|head|>{{ m['role'] }}<|/head|>\n\n{{ m['content'] }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
MARKERS = {
    "chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama": ["<|head|>", "<|/head|>", "<|eot|>"],
}
TEMPLATES = {"chatml": tiny.CHATML, "llama": LLAMA}


def byte_level(vocab_size: int, lower: bool = False, markers: list[str] | None = None) -> Tokenizer:
    """BPE on bytes, as GPT-2, Qwen and Llama 3 have it."""
    tokenizer = Tokenizer(models.BPE())
    if lower:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=markers or MARKERS["chatml"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def byte_fallback(vocab_size: int) -> Tokenizer:
    """BPE on characters, with bytes for those that it has not seen, as Llama 2 has it."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False)
    learner.train_from_iterator(tiny.SENTENCES, trainer)
    words = learner.get_vocab()
    fixed = [*MARKERS["chatml"], *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {token: i for i, token in enumerate([*fixed, *sorted(words, key=words.get)])}
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def unigram(vocab_size: int) -> Tokenizer:
    """Unigram over words that begin with a space, as SentencePiece's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=[*MARKERS["chatml"], "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


KINDS = {
    "bytes": lambda: byte_level(259),
    "small": lambda: byte_level(300),
    "large": lambda: byte_level(900),
    "fallback": lambda: byte_fallback(200),
    "unigram": lambda: unigram(160),
    "lower": lambda: byte_level(300, lower=True),
    "llama": lambda: byte_level(420, markers=MARKERS["llama"]),
}


def save(directory: Path, kind: str) -> Path:
    """The tokenizer as transformers saves it, with a chat template."""
    style = "llama" if kind == "llama" else "chatml"
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=KINDS[kind](),
        eos_token=MARKERS[style][-1],
        pad_token=MARKERS[style][-1],
        # As Llama 3's own files have it; it is not to change a text.
        clean_up_tokenization_spaces=style == "llama",
    )
    wrapped.add_special_tokens({"additional_special_tokens": MARKERS[style]})
    wrapped.chat_template = TEMPLATES[style]
    wrapped.save_pretrained(directory)
    return directory


def make(root: Path, max_seq_len: int | None = None) -> dict[str, HFTokenizer]:
    """One of each kind, saved below ``root`` the first time."""
    for kind in KINDS:
        if not (root / kind).exists():
            save(root / kind, kind)
    return {kind: HFTokenizer(root / kind, max_seq_len) for kind in KINDS}
