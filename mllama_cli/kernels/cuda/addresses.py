"""Where the rows of a step find their keys and values, in device memory that captured graphs read."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Addresses:
    """The rows' keys and values in device memory: offsets from ``base`` and a stride between heads, in elements.

    ``table`` is [rows, layers, 2], ``strides`` [rows]. Rows may share memory that a step only reads. Changed in stream
    order: kernels launched earlier still see the old addresses. Those of dtype uint8 are float8_e4m3fn, whose scales
    for each of ``kv_heads`` are in ``scales`` [rows, layers, 2, kv_heads].
    """

    def __init__(self, rows: int, layers: int, dtype: torch.dtype, device: torch.device, *, kv_heads: int = 0) -> None:
        self.base = torch.zeros(16, dtype=dtype, device=device)
        self.scales = torch.ones(rows, layers, 2, kv_heads, dtype=torch.float32, device=device)
        self.table = torch.zeros(rows, layers, 2, dtype=torch.int64, device=device)
        self.strides = torch.zeros(rows, dtype=torch.int64, device=device)

    def set(
        self, rows: int | slice, keys: Sequence[Tensor], values: Sequence[Tensor], scales: Tensor | None = None
    ) -> None:
        """Point one row or several to a pair of tensors [1, kv_heads, tokens, head_dim] for each layer.

        All tensors have the same layout. ``scales`` is [layers, 2, kv_heads].
        """
        origin, size = self.base.data_ptr(), self.base.element_size()
        offsets = [[(t.data_ptr() - origin) // size for t in pair] for pair in zip(keys, values, strict=True)]
        stride = keys[0].stride(1)
        assert all(t.stride()[1:] == (stride, t.shape[3], 1) for t in (*keys, *values))
        assert all(number % 16 == 0 for pair in offsets for number in pair)
        assert stride % 16 == 0
        self.table[rows].copy_(staged(offsets, self.table))
        self.strides[rows].copy_(staged(stride, self.strides))
        self.scales[rows] = 1.0 if scales is None else scales

    def move(self, source: int, target: int) -> None:
        """Point row ``target`` to where row ``source`` does."""
        self.table[target].copy_(self.table[source])
        self.strides[target].copy_(self.strides[source])
        self.scales[target].copy_(self.scales[source])


def staged(values: object, like: Tensor) -> Tensor:
    """Return a tensor of ``like``'s dtype and device, copied from pinned memory so that the host need not wait."""
    source = torch.tensor(values, dtype=like.dtype)
    return source.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else source
