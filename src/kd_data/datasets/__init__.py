"""Datasets: lm_eval tasks, mixtures, prompts with completions, classes, sources with targets."""
