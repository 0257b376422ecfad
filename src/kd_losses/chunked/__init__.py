"""The pass that projects, compares and differentiates chunk by chunk."""
