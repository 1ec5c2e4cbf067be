"""The built-in model: its weights, and the trainer that made them, which stays out of the wheel."""
