"""Weights in and out: safetensors files and the names of what is in them."""
