"""The built-in model: its drawings, the questions about them, training, evaluation and weights."""
