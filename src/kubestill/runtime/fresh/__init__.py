"""Fresh rows: find them, tell them from those that were taken already, and bring them into form."""
