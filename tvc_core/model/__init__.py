"""The hybrid model and what it can do."""
