"""Memory of the host that a GPU reads by itself: page-locked where there is a GPU, plain where there is none."""

import torch
from torch import Tensor

from mllama_cli.core.errors import MemoryShortageError
from mllama_cli.engine.device import gib


def host_tensor(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised host memory from which ``device`` can read while it computes.

    Raises MemoryShortageError where the system gives no page-locked memory of that size.
    """
    try:
        return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")
    except RuntimeError as error:
        size = torch.Size(shape).numel() * dtype.itemsize
        raise MemoryShortageError(
            f"The system gives no {gib(size)} of page-locked memory for weights that do not fit on the GPU",
            "Close other programs, raise the limit (ulimit -l), or use a smaller model.",
        ) from error


def to_host(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A copy in such memory."""
    copy = host_tensor(tuple(tensor.shape), dtype, device)
    copy.copy_(tensor)
    return copy


def host_blocks(count: int, size: int, device: torch.device) -> list[Tensor]:
    """``count`` blocks of ``size`` bytes, uint8, in such memory.

    torch rounds each page-locked allocation up to a power of two, so several blocks share one: as many as waste least.
    """

    def held(n: int) -> int:
        return count // n * _rounded(n * size) + _rounded(count % n * size)

    together = min(range(1, count + 1), key=held, default=1)
    blocks: list[Tensor] = []
    while len(blocks) < count:
        n = min(together, count - len(blocks))
        blocks += host_tensor((n * size,), torch.uint8, device).view(n, size).unbind()
    return blocks


def _rounded(size: int) -> int:
    return 1 << (size - 1).bit_length() if size else 0
