"""Matrices as other tools store them: for each form how to recognize it by its tensors, and how to decode it."""
