"""Triton kernels. Importing any of them imports Triton: ask ``kernels.ops.triton_available`` first."""
