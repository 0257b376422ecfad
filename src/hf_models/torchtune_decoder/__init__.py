"""Dense Llama and Qwen decoders of torchtune, built from a config.json."""
