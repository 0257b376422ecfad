"""Datasets: lm_eval tasks, mixtures, prompts with completions, the embedded texts."""
