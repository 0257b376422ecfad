"""Text that the student writes itself, to be taught on it."""
