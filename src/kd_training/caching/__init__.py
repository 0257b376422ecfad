"""A teacher that is asked about every text once."""
