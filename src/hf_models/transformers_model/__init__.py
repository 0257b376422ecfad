"""Models of transformers as they are, LoRA by PEFT."""
