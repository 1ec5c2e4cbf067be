"""Weights in 4 and 8 bits: what a scheme means on disk and in memory; quantizes a checkpoint slice by slice."""
