"""Launch the decode kernels with programmatic dependent launch (PDL), or only compile them, in parallel.

Under PDL a kernel may start, and load what does not depend on its predecessor, before the predecessor ends.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents as triton_launch_dependents
from triton.language.extra.cuda import gdc_wait as triton_wait

from mllama_cli.system.interrupts import ThreadPool


@triton.jit
def gdc_launch_dependents(PDL: tl.constexpr):
    """Allow the next kernel to start."""
    if PDL:
        triton_launch_dependents()


@triton.jit
def gdc_wait(PDL: tl.constexpr):
    """Wait for the preceding kernels: neither read what they write nor write what they read before this."""
    if PDL:
        triton_wait()


@cache
def capability(device: torch.device) -> int:
    """Return the device's compute capability, 90 for 9.0; 0 without a GPU, for Triton's interpreter."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def supports_pdl(device: torch.device) -> bool:
    """Return whether the device has programmatic dependent launch."""
    return capability(device) >= 90


@cache
def multiprocessors(device: torch.device) -> int:
    """Return the device's number of multiprocessors; 2 without a GPU, for Triton's interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


@cache
def shared_bytes(device: torch.device) -> int:
    """Return how much shared memory a block may have on the device; 0 without a GPU, for Triton's interpreter."""
    if device.type != "cuda":
        return 0
    properties: Any = torch.cuda.get_device_properties(device)  # whose stub lacks it
    return int(properties.shared_memory_per_block_optin)


_compiling = threading.local()
"""``only`` is true inside ``compile_only``, in its thread alone: other threads may launch meanwhile."""


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    device: torch.device,
    warps: int,
    registers: int | None = None,
    **constants: Any,
) -> None:
    """Start a kernel, with PDL where the device has it; inside ``compile_only``, only compile it.

    A thread may use that many ``registers``; None leaves it to the compiler.
    """
    ahead = supports_pdl(device)
    constants.update(PDL=ahead, num_warps=warps)
    if registers is not None:
        constants["maxnreg"] = registers
    if ahead:
        constants["launch_pdl"] = True
    if getattr(_compiling, "only", False):
        kernel.warmup(*arguments, grid=grid, **constants)
    else:
        kernel[grid](*arguments, **constants)


@contextmanager
def compile_only() -> Iterator[None]:
    """Compile on all cores what ``launch`` would start in the block; all is compiled when the block ends."""
    mode = getattr(triton, "AsyncCompileMode", None)
    with ExitStack() as stack:
        if mode is not None:  # before Triton 3.4: one kernel after another
            stack.enter_context(mode(stack.enter_context(ThreadPool(os.cpu_count() or 1))))
        _compiling.only = True
        try:
            yield
        finally:
            _compiling.only = False
