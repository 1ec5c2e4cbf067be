"""Decoding on a CUDA device: a step as few kernels, captured as one graph. Needs Triton; else the torch path runs."""
