"""Building blocks that both transformers share."""

from collections.abc import Generator
from typing import TypeVar

import torch
from torch import Tensor, nn

from mllama_cli.kernels import attention as kernels
from mllama_cli.kernels.dispatch import linear
from mllama_cli.kernels.rows import fused, gated_silu, rms_norm
from mllama_cli.kernels.tables import gather

T = TypeVar("T")


def normal_parameter(*shape: int, std: float) -> nn.Parameter:
    """Drawn from a normal distribution; on the meta device not at all, as torch would import its compiler for it."""
    values = torch.empty(*shape)
    return nn.Parameter(values if values.is_meta else values.normal_(0, std))


def result_of(steps: Generator[object, None, T]) -> T:
    """Run a computation that tells how far it is, and return what it comes to."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


class Embedding(nn.Embedding):
    """nn.Embedding that draws nothing on the meta device, for the same reason; its table may lie in host memory."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, ids: Tensor) -> Tensor:
        return gather(ids, self.weight)


class Linear(nn.Linear):
    """nn.Linear whose product is the fastest that its weight's format and device have; F.linear for float32."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def added(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + self(x), which may be written over ``residual``: a GPU adds it up inside the product."""
        alike = self.weight.dtype == x.dtype == residual.dtype and self._parameters["bias"] is None
        if not (fused(residual) and alike):
            total: Tensor = residual + self(x)
            return total
        residual.view(-1, residual.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), self.weight.t())
        return residual


class MllamaTextRMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension: float32 inside, cast back, then times the weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class MllamaTextMLP(nn.Module):
    """SiLU-gated feed-forward network. With a residual it is added, and may be written over."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = Linear(size, inner, bias=False)
        self.up_proj = Linear(size, inner, bias=False)
        self.down_proj = Linear(inner, size, bias=False)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        inner = gated_silu(self.gate_proj(x), self.up_proj(x))
        result: Tensor = self.down_proj(inner) if residual is None else self.down_proj.added(inner, residual)
        return result


def heads(x: Tensor, head_dim: int) -> Tensor:
    """[B, L, heads * head_dim] -> [B, heads, L, head_dim]."""
    split: Tensor = x.unflatten(-1, (-1, head_dim))
    return split.transpose(1, 2)


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of [B, heads, L, D] queries over [B, kv_heads, S, D] keys in which no row is causal.

    The queries of a key head's group become further rows, so keys are neither repeated nor masked by head.
    ``mask`` is bool [B or 1, 1, L, S]. Returns [B, L, heads * D].
    """
    batch, n_heads, length, dim = q.shape
    kv_heads = k.shape[1]
    groups = n_heads // kv_heads
    q = q.reshape(batch, kv_heads, groups * length, dim)
    if mask is not None and length > 1:
        mask = mask.repeat(1, 1, groups, 1)
    out = kernels.attention(q, k, v, mask)
    out = out.reshape(batch, n_heads, length, dim)
    return out.transpose(1, 2).flatten(2)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of the last rows over themselves and what stands before them. Shapes as in ``grouped_attention``."""
    return kernels.causal_attention(q, k, v).transpose(1, 2).flatten(2)
