"""Choose a matrix product on a CPU by number of rows, format of the matrix, and capabilities of the machine.

| rows | matrix   | our kernels                | ... exact  | no compiler          | ... exact |
|------|----------|----------------------------|------------|----------------------|-----------|
| few  | 16 bits  | float32                    | float32    | the matrix's format  | parts     |
| few  | 4 bits   | 8-bit activations          | float32    | torch's operator     | parts     |
| few  | 8 bits   | float32                    | float32    | torch's operator     | parts     |
| few  | codes    | float32                    | float32    | parts                | parts     |
| many | 16 bits  | parts, or bfloat16 (below) | parts      | as with our kernels  | parts     |
| many | 4, 8     | 8-bit activations          | parts      | parts                | parts     |
| many | codes    | parts, or in bfloat16      | parts      | parts                | parts     |

4 and 8 bits are integers; codes are those of a table, or E4M3. float32: our kernel reads the matrix in place. bfloat16:
where the processor has instructions for such products. Parts: a few rows of the matrix at a time are converted to
float32 in a small buffer.
"""

from collections.abc import Callable
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mllama_cli.kernels.cpu import torch_ops
from mllama_cli.kernels.cpu.native import MAX_CODE_ROWS, MAX_GEMV_ROWS, native
from mllama_cli.kernels.packed import PackedWeight

PART_BYTES = 28 * 2**20
"""Size of the float32 buffer: a matrix of the vision tower fits whole; glibc keeps freed buffers of up to 32 MiB."""


def dense(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, exact: bool) -> Tensor:
    """Multiply x [..., in] by the transposed bfloat16 or float16 matrix [out, in] in float32; return x's dtype."""
    kernels = native()
    few = x.numel() <= MAX_GEMV_ROWS * x.shape[-1]
    if few and kernels is not None and weight.is_contiguous():
        out = kernels.half(_rows(x), weight)
    elif not exact and (few or rounds_to_bfloat16(weight)):
        narrow = None if bias is None else bias.to(weight.dtype)
        return F.linear(x.detach().to(weight.dtype), weight, narrow).to(x.dtype)
    else:
        out = _by_parts(_rows(x), weight.shape, lambda start, stop, part: part.copy_(weight[start:stop]))
    if bias is not None:
        out += bias
    return _shaped(out, x)


def rounds_to_bfloat16(weight: Tensor) -> bool:
    """Return whether products of many rows with this matrix take activations in bfloat16, unless ``exact``."""
    return weight.dtype == torch.bfloat16 and multiplies_bfloat16()


def quantized(x: Tensor, weight: PackedWeight, *, exact: bool) -> Tensor:
    """Multiply x [..., in] by the transposed packed matrix [out, in]; return x's dtype."""
    rows = _rows(x)
    kernels = native()
    integers = weight.code == "int"
    few = rows.shape[0] <= (MAX_GEMV_ROWS if integers else MAX_CODE_ROWS)
    if kernels is not None and kernels.supports(weight):
        if few and (exact or weight.bits == 8 or not integers):
            out = kernels.packed(rows, weight)
        elif exact or not integers:
            narrow = not exact and multiplies_bfloat16()
            out = _by_parts(rows, weight.shape, partial(kernels.decode, weight), narrow=narrow)
        else:
            out = kernels.int8(rows, weight)
    elif few and not exact and integers and torch_ops.supports(weight):
        out = torch_ops.packed(rows, weight)
    else:
        out = _by_parts(rows, weight.shape, partial(torch_ops.decode, weight))
    return _shaped(out, x)


@lru_cache(maxsize=1)
def multiplies_bfloat16() -> bool:
    """Return whether the processor has bfloat16 instructions; without them torch's products are slower than float32's.

    torch's functions for this are private: where they are gone, the answer is no.
    """
    return any(bool(getattr(torch.cpu, f"_is_{feature}_supported", bool)()) for feature in ("amx_tile", "avx512_bf16"))


def _by_parts(
    x: Tensor, shape: tuple[int, int] | torch.Size, fill: Callable[[int, int, Tensor], object], *, narrow: bool = False
) -> Tensor:
    """Multiply x [rows, k] by a transposed matrix [n, k], whose rows start to stop ``fill`` writes into a buffer.

    ``narrow``: both are rounded to bfloat16.
    """
    n, k = shape
    rounded = x.bfloat16() if narrow else x
    step = min(n, max(16, PART_BYTES // (4 * max(k, 1))))
    buffer = x.new_empty(step, k)
    out = x.new_empty(x.shape[0], n)
    for start in range(0, n, step):
        stop = min(start + step, n)
        part = buffer[: stop - start]
        fill(start, stop, part)
        if narrow:
            out[:, start:stop] = rounded @ part.bfloat16().T
        else:
            torch.mm(x, part.T, out=out[:, start:stop])
    return out


def _rows(x: Tensor) -> Tensor:
    return x.detach().reshape(-1, x.shape[-1]).float().contiguous()


def _shaped(out: Tensor, x: Tensor) -> Tensor:
    return out.view(*x.shape[:-1], out.shape[-1]).to(x.dtype)
