"""Weights in 4 and 8 bits: schemes on disk and in memory, and quantizing a checkpoint slice by slice."""
