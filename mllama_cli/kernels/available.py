"""Which kernels run here: on this device, with these tensors, and with results like torch's."""

import os
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mllama_cli.kernels.cpu.native import Native

MAX_NATIVE_ROWS = 8
"""Rows up to which our CPU kernels compute norm, gate and rotation; with more, torch's threads are worth it."""

MAX_KERNEL_ERROR = 0.02
"""Relative error of a kernel on random numbers, where 16-bit rounding causes about 0.002."""


def strict_kernels() -> bool:
    """Return whether a kernel that fails must raise instead of falling back to torch (MLLAMA_STRICT_KERNELS=1).

    For tests. A kernel that does not apply (another head dimension, an older GPU, no CUDA) is not a failure.
    """
    return os.environ.get("MLLAMA_STRICT_KERNELS") == "1"


@cache
def triton_available(device: torch.device) -> bool:
    """Return whether Triton can build a kernel for this device, which also takes a C compiler."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        from mllama_cli.kernels.cuda import elementwise

        elementwise.silu_and_mul(torch.ones(1, device=device), torch.ones(1, device=device))
    except torch.OutOfMemoryError:
        raise  # says nothing about Triton: another attempt may succeed
    except Exception:  # whatever is missing, torch's own operations give the same result
        if strict_kernels():
            raise
        return False
    return True


def image_kernels_available(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether to try our kernels for the vision tower.

    They were measured to be faster on GPUs of compute capability 9.0 alone, whose instructions they are made for.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return torch.cuda.get_device_capability(device) == (9, 0) and triton_available(device)


def use_triton(x: Tensor) -> bool:
    """Return whether our GPU kernels take this tensor."""
    return x.is_cuda and not torch.is_grad_enabled() and triton_available(x.device)


def native_for_small_batch(*tensors: Tensor, rows: int) -> "Native | None":
    """Return our CPU kernels if they take these: few rows in float32, and no gradients.

    A decode step has dozens of small operations in each layer, whose call costs more than their computation.
    """
    if (
        rows > MAX_NATIVE_ROWS
        or torch.is_grad_enabled()
        or any(t.device.type != "cpu" or t.dtype != torch.float32 for t in tensors)
    ):
        return None
    from mllama_cli.kernels.cpu.native import native

    return native()


def needs_grad(*tensors: Tensor) -> bool:
    """Return whether torch records operations on any of these."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def prepare(device: torch.device) -> str:
    """Compile ahead of time what the first product on this device needs.

    Return in one line what the user should know: why that failed, or has to be done at every start; else "".
    """
    if device.type != "cpu":
        return ""
    from mllama_cli.kernels.cpu.compiler import find_compiler
    from mllama_cli.kernels.cpu.native import disabled, native, native_note

    if native() is None and strict_kernels() and not disabled() and find_compiler() is not None:
        raise RuntimeError(f"the C++ kernels could not be built. {native_note()}")
    return native_note()


def runs_right(relative_error: Callable[[], float]) -> bool:
    """Return whether a kernel, tried on random 16-bit numbers, neither fails nor is wrong."""
    try:
        with torch.no_grad():
            error = relative_error()
    except torch.OutOfMemoryError:
        raise  # says nothing about the kernel: another attempt may succeed
    except Exception:  # such as a Triton without what it uses: torch's own operations give the same result
        if strict_kernels():
            raise
        return False
    right = error <= MAX_KERNEL_ERROR  # false for nan too
    if not right and strict_kernels():
        raise RuntimeError(f"a kernel computes here what is {error:.0%} from torch's result")
    return right
