"""Triton kernels. Import only where ``kernels.cuda.support.available`` says so."""
