"""One divergence a file, over one base."""
