"""The operations of the network: for each, the torch reference and the one place that chooses who computes it."""

import os


def strict_kernels() -> bool:
    """Return whether a kernel that fails must raise instead of falling back to torch (MLLAMA_STRICT_KERNELS=1).

    For tests. A kernel that does not apply (another head dimension, an older GPU, no CUDA) is not a failure.
    """
    return os.environ.get("MLLAMA_STRICT_KERNELS") == "1"
