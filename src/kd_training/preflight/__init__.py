"""What can be known before a weight is read."""
