"""The built-in model: its weights, and their trainer, which is not in the wheel."""
