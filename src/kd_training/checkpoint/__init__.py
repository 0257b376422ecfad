"""What determines the rest of a run, and the files that keep it."""
