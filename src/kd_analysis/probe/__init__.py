"""A look into models: angles between layers, overlap of logits."""
