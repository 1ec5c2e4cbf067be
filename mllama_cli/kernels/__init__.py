"""Kernels and their torch references. ops.py and sdpa.py choose for each operation; packed.py has the packed format.

The kernels are in cpu/ (C++) and cuda/ (Triton).
"""
