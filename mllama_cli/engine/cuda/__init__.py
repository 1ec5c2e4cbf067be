"""Decode on a CUDA device with Triton kernels in captured graphs."""
