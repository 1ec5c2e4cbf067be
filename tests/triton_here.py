"""Triton's kernels wherever the tests run: on the GPU, or on the CPU in Triton's interpreter. Import this first."""

import os
from typing import Any

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
triton = pytest.importorskip("triton")
if DEVICE.type == "cpu":
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_for_numpy(tensor: Any, *scope: Any) -> Any:
        """The interpreter holds scalars as arrays of one element, which numpy 2.4 no longer turns into an int."""
        result = patch(tensor, *scope)

        def index(self: Any) -> int:
            return int(self.handle.data.item())

        scope[0].set_attr(tensor, "__index__", index) if scope else setattr(tensor, "__index__", index)
        return result

    interpreter._patch_lang_tensor = patch_for_numpy


def apart(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative distance of two results."""
    ours, exact = ours.detach().double(), exact.detach().double()
    return float((ours - exact).norm() / exact.norm())


def aligned(tensor: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """A copy that lies a multiple of 16 numbers from ``base``, as everything on a GPU does."""
    size = tensor.element_size()
    room = torch.empty(tensor.numel() + 16, dtype=tensor.dtype, device=tensor.device)
    start = ((base.data_ptr() - room.data_ptr()) // size) % 16
    return room[start : start + tensor.numel()].view(tensor.shape).copy_(tensor)
