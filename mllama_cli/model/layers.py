"""Building blocks of both transformers."""

from collections.abc import Callable, Generator
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from mllama_cli.kernels import ops, sdpa

T = TypeVar("T")


def normal_parameter(*shape: int, std: float) -> nn.Parameter:
    """Draw from a normal distribution, except on the meta device, where torch would import its compiler to do so."""
    values = torch.empty(*shape)
    return nn.Parameter(values if values.is_meta else values.normal_(0, std))


def result_of(steps: Generator[object, None, T]) -> T:
    """Exhaust a generator and return its value."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


class Embedding(nn.Embedding):
    """nn.Embedding that draws nothing on the meta device either; its table may be in host memory."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, ids: Tensor) -> Tensor:
        return ops.embedding(ids, self.weight)


class Exchange(Protocol):
    """Completes a product of which each of several processes computes a part."""

    def __call__(self, product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return the whole product for x; ``product`` computes this process's part."""
        ...


class Projection(nn.Module):
    """A linear layer, plain or quantized.

    ``exact`` keeps activations in their precision; otherwise a CPU may round them where that is faster. ``exchange``
    is None where this process has the whole matrix, or where others go on with the part that it computes.
    """

    exact = False
    exchange: Exchange | None = None

    def product(self, x: Tensor) -> Tensor:
        """Return the product with the matrix that this process has."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x) if self.exchange is None else self.exchange(self.product, x)

    def forward_add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return residual + self(x), possibly written over ``residual``."""
        total: Tensor = residual + self(x)
        return total

    def forward_gelu(self, x: Tensor) -> Tensor:
        """Return gelu(self(x)), in its exact form with erf."""
        return ops.gelu_(self(x))


def set_exact(network: nn.Module, on: bool) -> None:
    """Set whether activations keep their precision, for all linear layers of a network."""
    for module in network.modules():
        if isinstance(module, Projection):
            module.exact = on


class Linear(nn.Linear, Projection):
    """nn.Linear with the fastest product for its weight's dtype and device; F.linear for float32."""

    def product(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias, exact=self.exact)

    def forward(self, x: Tensor) -> Tensor:
        return Projection.forward(self, x)

    def forward_add(self, x: Tensor, residual: Tensor) -> Tensor:
        if self.exchange is not None:
            return super().forward_add(x, residual)
        return ops.linear_add(x, self.weight, self.bias, residual, exact=self.exact)

    def forward_gelu(self, x: Tensor) -> Tensor:
        if self.exchange is not None:
            return super().forward_gelu(x)
        return ops.linear_gelu(x, self.weight, self.bias, exact=self.exact)


def rounded_for(x: Tensor, projection: nn.Module) -> Tensor:
    """Return x in the dtype to which a plain linear layer rounds many rows: see ``ops.rounded_for``."""
    if not isinstance(projection, Linear):
        return x
    return ops.rounded_for(x, projection.weight, exact=projection.exact)


class MllamaTextRMSNorm(nn.Module):
    """RMSNorm over the last dimension: in float32, cast back, then times the weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)


class MllamaTextMLP(nn.Module):
    """SiLU-gated feed-forward network. A residual is added if given, and may be written over."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = Linear(size, inner, bias=False)
        self.up_proj = Linear(size, inner, bias=False)
        self.down_proj = Linear(inner, size, bias=False)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        inner = ops.silu_and_mul(self.gate_proj(x), self.up_proj(x))
        result: Tensor = self.down_proj(inner) if residual is None else self.down_proj.forward_add(inner, residual)
        return result


def heads(x: Tensor, head_dim: int) -> Tensor:
    """Split [B, L, heads * head_dim] -> [B, heads, L, head_dim]."""
    split: Tensor = x.unflatten(-1, (-1, head_dim))
    return split.transpose(1, 2)


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend from queries [B, heads, L, D] to keys [B, kv_heads, S, D], not causally -> [B, L, heads * D].

    The queries of a key head's group become further rows, so keys are neither repeated nor masked by head. ``mask`` is
    bool [B or 1, 1, L, S].
    """
    batch, n_heads, length, dim = q.shape
    kv_heads = k.shape[1]
    groups = n_heads // kv_heads
    q = q.reshape(batch, kv_heads, groups * length, dim)
    if mask is not None and length > 1:
        mask = mask.repeat(1, 1, groups, 1)
    out = sdpa.attention(q, k, v, mask)
    out = out.reshape(batch, n_heads, length, dim)
    return out.transpose(1, 2).flatten(2)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from the last rows to themselves and the keys before them. Shapes as in ``grouped_attention``."""
    return sdpa.causal_attention(q, k, v).transpose(1, 2).flatten(2)
