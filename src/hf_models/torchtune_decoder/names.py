"""Parameter names: torchtune's on one side, those of transformers and PEFT on the other."""

# Modules by torchtune's name and the name that Llama, Qwen2 and Qwen3 share in transformers.
# Within a decoder layer names are relative to the layer.
_MODEL_MODULES = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
_LAYER_MODULES = {
    "sa_norm": "input_layernorm",
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.output_proj": "self_attn.o_proj",
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w2": "mlp.down_proj",
    "mlp.w3": "mlp.up_proj",
}
_PARAMETERS = {
    "weight": "weight",
    "bias": "bias",
    "scale": "weight",
    "lora_a.weight": "lora_A.weight",
    "lora_b.weight": "lora_B.weight",
    "magnitude": "lora_magnitude_vector",
}


def hf_name(name: str) -> str:
    """``layers.3.attn.output_proj.weight`` → ``model.layers.3.self_attn.o_proj.weight``.

    Raises:
        ValueError: If the parameter has no counterpart in transformers.
    """
    prefix, modules, rest = "", _MODEL_MODULES, name
    if name.startswith("layers."):
        _, index, rest = name.split(".", 2)
        prefix, modules = f"model.layers.{index}.", _LAYER_MODULES
    for module, hf_module in modules.items():
        parameter = rest.removeprefix(f"{module}.")
        if parameter != rest and parameter in _PARAMETERS:
            return f"{prefix}{hf_module}.{_PARAMETERS[parameter]}"
    raise ValueError(f"{name}: no such parameter in a Llama, Qwen2 or Qwen3 model")


def tune_name(name: str) -> str:
    """The inverse of :func:`hf_name`, for the model's own parameters.

    Raises:
        ValueError: If the parameter has no counterpart in torchtune's decoder.
    """
    prefix, modules, rest = "", _MODEL_MODULES, name
    if name.startswith("model.layers."):
        _, _, index, rest = name.split(".", 3)
        prefix, modules = f"layers.{index}.", _LAYER_MODULES
    for module, hf_module in modules.items():
        if rest == f"{hf_module}.weight":
            return f"{prefix}{module}.{'scale' if module.endswith('norm') else 'weight'}"
        if rest == f"{hf_module}.bias":
            return f"{prefix}{module}.bias"
    raise ValueError(f"{name}: no such parameter in a Llama, Qwen2 or Qwen3 model")


def peft_name(name: str) -> str:
    """``layers.3.attn.q_proj.lora_a.weight`` → PEFT's name of the same LoRA matrix.

    Raises:
        ValueError: If the parameter has no counterpart in transformers.
    """
    return f"base_model.model.{hf_name(name)}"


def hf_module_name(name: str) -> str:
    """Last part of a module's name, as in PEFT's ``target_modules``: ``output_proj`` → ``o_proj``.

    Raises:
        ValueError: If there is no such module.
    """
    for module, hf_module in (_LAYER_MODULES | _MODEL_MODULES).items():
        if module.rpartition(".")[2] == name:
            return hf_module.rpartition(".")[2]
    raise ValueError(f"{name}: no such module in a Llama, Qwen2 or Qwen3 model")
