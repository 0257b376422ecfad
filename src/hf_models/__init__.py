"""A Hugging Face directory in; a model, tokenizer and checkpointer out; and back."""

from hf_models.checkpointer import HFCheckpointer
from hf_models.directories import atomic_directory
from hf_models.export import save_pretrained
from hf_models.init_student import init_student
from hf_models.model import Model, ModelFacts, Sampling, Stack, View
from hf_models.quantization import quantize
from hf_models.student_card import copied_blocks
from hf_models.tokenizer import HFTokenizer, tokenizer
from hf_models.torchtune_decoder.builders import decoder, lora_decoder
from hf_models.torchtune_decoder.config import read_config
from hf_models.torchtune_decoder.loading import load_weights
from hf_models.torchtune_decoder.lora import head_weight, merged_state_dict
from hf_models.torchtune_decoder.model import DecoderModel
from hf_models.transformers_model.builders import auto_model, lora_auto_model
from hf_models.transformers_model.model import TransformersModel
from hf_models.vocabulary import vocabulary_mismatch

__all__ = [
    "DecoderModel",
    "HFCheckpointer",
    "HFTokenizer",
    "Model",
    "ModelFacts",
    "Sampling",
    "Stack",
    "TransformersModel",
    "View",
    "atomic_directory",
    "auto_model",
    "copied_blocks",
    "decoder",
    "head_weight",
    "init_student",
    "load_weights",
    "lora_auto_model",
    "lora_decoder",
    "merged_state_dict",
    "quantize",
    "read_config",
    "save_pretrained",
    "tokenizer",
    "vocabulary_mismatch",
]
