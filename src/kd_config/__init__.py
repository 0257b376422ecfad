"""What a run's YAML may say, and what it says."""
