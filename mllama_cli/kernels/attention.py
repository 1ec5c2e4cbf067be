"""Scaled dot-product attention: which implementation runs.

On recent GPUs torch takes cuDNN's, which is the fastest for many rows, but makes a plan for every pair of lengths that
it has not seen: 40 to 60 ms on an H200, and hardly two prompts are equally long. So FlashAttention begins.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

PLAN = 2**32
"""Pairs of a query and a key, over all heads, from which on a plan pays for equal shapes: two prompts of 2,048 tokens.

FlashAttention takes about 1 us more for a million of them.
"""

_pairs: dict[tuple[torch.Size, torch.Size], int] = {}
"""What FlashAttention has computed for each shape."""


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of q [B, heads, rows, D] over k and v [B, heads, keys, D] -> [B, heads, rows, D].

    ``mask`` is bool, broadcast to [B, heads, rows, keys].
    """
    if mask is None and not _differentiated(q, k, v):
        if q.device.type == "cpu":
            from mllama_cli.kernels.cpu.native import native_if_loaded

            kernels = native_if_loaded()
            if kernels is not None and kernels.attends(q, k, v):
                return kernels.attention(q, k, v)
        elif flashes(q.device, q.dtype, q.shape[-1]) and not _plan_pays(q, k, q.shape[2] * k.shape[2]):
            return _flash(q, k, v, causal=False)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of rows that are the last of the keys, each over itself and what stands before it.

    q [B, heads, rows, D] over k and v [B, kv_heads, keys, D] -> [B, heads, rows, D]. More keys than rows only where
    ``flashes`` says so: others know no such attention without a mask.
    """
    rows, keys = q.shape[2], k.shape[2]
    able = flashes(q.device, q.dtype, q.shape[-1]) and not _differentiated(q, k, v)
    if able and (rows < keys or not _plan_pays(q, k, rows * keys // 2)):
        return _flash(q, k, v, causal=True)
    assert rows == keys
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


@cache
def flashes(device: torch.device, dtype: torch.dtype, dim: int) -> bool:
    """Whether FlashAttention runs here, asked by trying: it depends on torch's build, the GPU and the format."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or dim % 8:
        return False
    rows = torch.zeros(1, 1, 8, dim, dtype=dtype, device=device)
    try:
        _flash(rows, rows, rows, causal=True)
    except Exception:  # no kernel, no such operator: others do the same
        return False
    return True


def _flash(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    # As torch.nn.attention.bias calls it; here the last row sees the last key, and query heads share key heads.
    result: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)[0]
    return result


def _plan_pays(q: Tensor, k: Tensor, pairs: int) -> bool:
    """Counts ``pairs`` of one head. Whoever asks for equal shapes again and again shall have the fastest."""
    shape = q.shape, k.shape
    spent = _pairs.get(shape, 0)
    if spent < PLAN:
        if len(_pairs) > 10_000:
            _pairs.clear()
        _pairs[shape] = spent + pairs * q.shape[0] * q.shape[1]
        return False
    return True


def _differentiated(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
