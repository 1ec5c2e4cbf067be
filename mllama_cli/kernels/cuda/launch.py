"""Programmatic dependent launch: a kernel may start, and ask for what it reads anyway, before its predecessor ends."""

from functools import cache

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


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
