"""Matrix products on a CPU: our own kernels where there is a C++ compiler, torch's operators elsewhere."""
