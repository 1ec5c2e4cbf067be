"""Triton kernels. Importing any of them imports Triton: ask ``kernels.available.triton_available`` first."""
