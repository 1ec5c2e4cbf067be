"""Scaled dot-product attention: choose among torch's implementations and our kernels.

The choice depends on shape, dtype and device alone, so that equal inputs give equal results whatever the process did
before. On recent GPUs torch prefers cuDNN, the fastest for many rows (a prompt of 2,048 tokens of the 11B:
2.7 ms over all layers, FlashAttention 5.3 ms), but cuDNN plans for 40 to 60 ms (on an H200) whenever a shape is new,
which would be nearly every prompt. So cuDNN gets the shapes that recur, and FlashAttention, which needs no plan and
costs about 1 us more for a million pairs of a query and a key, all others:

- causal squares of a multiple of 1,024 rows recur: they are the first chunks of all long prompts, whose size is a power
  of two from 1,024 on (engine/weights/memory.py). A process plans for at most four of them up to a full chunk;
- an encoder's shapes recur: there are as many as numbers of tiles (the vision tower's go to our own kernels where
  these are faster: kernels/tower.py);
- text over vision tokens, rows that follow others, and prompts of other lengths do not.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mllama_cli.kernels.available import needs_grad, strict_kernels, triton_available

RECURRING_ROWS = 1024
"""Causal squares of a multiple of this many rows are worth a cuDNN plan."""

MAX_FLASH_HEAD_DIM = 256

CPU_PAIRS = 2**26
"""Query-key pairs in one attention operation of an encoder on a CPU: a third of a second."""


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend from q [B, heads, rows, D] to k and v [B, heads, keys, D] -> [B, heads, rows, D].

    ``mask`` is bool, broadcast to [B, heads, rows, keys].
    """
    if mask is None and not needs_grad(q, k, v):
        if q.device.type == "cpu":
            from mllama_cli.kernels.cpu.native import native

            kernels = native()
            if kernels is not None and kernels.supports_attention(q, k, v):
                return kernels.attention(q, k, v)
        elif has_flash_attention(q.device, q.dtype, q.shape[-1]):
            return _flash(q, k, v, causal=False)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from the last rows of a sequence, each to itself and the keys before it.

    q [B, heads, rows, D], k and v [B, kv_heads, keys, D] -> [B, heads, rows, D]. More keys than rows only where
    ``has_flash_attention``: other implementations need a mask for that.
    """
    rows, keys = q.shape[2], k.shape[2]
    flash = has_flash_attention(q.device, q.dtype, q.shape[-1]) and not needs_grad(q, k, v)
    if flash and (rows < keys or rows % RECURRING_ROWS):
        return _flash(q, k, v, causal=True)
    assert rows == keys
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def encoder_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attend without a mask from an encoder's tokens q to k and v [N, heads, tokens, D].

    On a CPU some heads at a time: a single operation cannot be interrupted, and four tiles would take seconds.
    """
    heads_at_once = max(1, CPU_PAIRS // max(1, q.shape[2] * k.shape[2]))
    if q.device.type != "cpu" or heads_at_once >= q.shape[1]:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    parts = zip(*(t.split(heads_at_once, dim=1) for t in (q, k, v)), strict=True)
    return torch.cat([F.scaled_dot_product_attention(a, b, c, scale=scale) for a, b, c in parts], dim=1)


@cache
def has_flash_attention(device: torch.device, dtype: torch.dtype, dim: int) -> bool:
    """Return whether FlashAttention runs here, by trying it: torch's build matters too."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    if dim % 8 or dim > MAX_FLASH_HEAD_DIM or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    rows = torch.zeros(1, 1, 8, dim, dtype=dtype, device=device)
    try:
        _flash(rows, rows, rows, causal=True)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # no kernel or no such operator: other implementations give the same result
        if strict_kernels():
            raise
        return False
    return True


def supports_decode_attention(dtype: torch.dtype, head_dim: int) -> bool:
    """Return whether the decode kernel of cuda/attention.py takes this dtype and head dimension."""
    return dtype in (torch.float16, torch.bfloat16, torch.float32) and head_dim in (32, 64, 128)


def has_decode_attention(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Return whether the decode kernel of cuda/attention.py runs here."""
    return supports_decode_attention(dtype, head_dim) and triton_available(device)


def _flash(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    # Called as torch.nn.attention.bias does: the last row sees the last key, and query heads share key heads.
    result: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)[0]
    return result
