"""Scores of a run's models on its held-out data, for tasks that lm_eval does not know."""
