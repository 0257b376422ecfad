"""Where a run lives: on one device or on many."""
