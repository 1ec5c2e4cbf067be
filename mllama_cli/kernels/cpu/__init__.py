"""Products on a CPU: our own kernels where a C++ compiler is at hand, torch's operators where none is."""
