"""A Hugging Face directory in; a torchtune decoder, tokenizer and checkpointer out; and back."""

from hf_models.builders import decoder, lora_decoder
from hf_models.config import read_config

__all__ = ["decoder", "lora_decoder", "read_config"]
