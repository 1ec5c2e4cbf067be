"""The same maths faster. ops.py and sdpa.py: for each operation the torch reference and the one choice of a kernel.

packed.py says what a quantized matrix is; the kernels are in cpu/ (C++) and cuda/ (Triton).
"""
