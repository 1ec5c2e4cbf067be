"""How the decode kernels start: each before its predecessor has ended, and all of them compiled side by side.

Programmatic dependent launch: a kernel may start, and ask for what it reads anyway, before its predecessor ends.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from mllama_cli.system.interrupts import ThreadPool


@triton.jit
def dependents_may_start(OVERLAP: tl.constexpr):
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def wait_for_inputs(OVERLAP: tl.constexpr):
    """Nothing that an earlier kernel wrote may be read, and nothing that one reads be written, before this."""
    if OVERLAP:
        gdc_wait()


@cache
def overlap(device: torch.device) -> bool:
    """Whether kernels on this device are launched so: from compute capability 9.0 on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@cache
def multiprocessors(device: torch.device) -> int:
    """How many there are; 2 without a GPU, for Triton's interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


_only_building = False


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Any, device: torch.device, warps: int, **constants: Any
) -> None:
    """Start a kernel that overlaps its neighbours where the device can, or inside ``building`` only compile it."""
    ahead = overlap(device)
    constants.update(OVERLAP=ahead, num_warps=warps)
    if ahead:
        constants["launch_pdl"] = True
    if _only_building:
        kernel.warmup(*arguments, grid=grid, **constants)
    else:
        kernel[grid](*arguments, **constants)


@contextmanager
def building() -> Iterator[None]:
    """Inside, ``launch`` only compiles what it would start, on all cores; at the end all is done."""
    global _only_building
    mode = getattr(triton, "AsyncCompileMode", None)
    if mode is None:  # older than Triton 3.4: each kernel is compiled at its first start
        _only_building = True
        try:
            yield
        finally:
            _only_building = False
        return
    with ThreadPool(os.cpu_count() or 1) as threads, mode(threads):
        _only_building = True
        try:
            yield
        finally:
            _only_building = False
