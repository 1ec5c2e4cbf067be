"""The vision tower's transformer layers, in a form that needs no attention mask.

Tokens are ordered [real | padding], so that the mask, under which only padding does not see padding, becomes two calls
without one: real queries over all keys, padding queries over real keys.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllama_cli.core.config import MllamaVisionConfig
from mllama_cli.kernels.ops import add_layer_norm, by_rows, pad_heads
from mllama_cli.kernels.sdpa import encoder_attention
from mllama_cli.model.layers import Linear, rounded_for


class MllamaVisionAttention(nn.Module):
    def __init__(self, config: MllamaVisionConfig) -> None:
        super().__init__()
        self.head_dim = config.hidden_size // config.attention_heads
        size = config.hidden_size
        self.q_proj = Linear(size, size, bias=False)
        self.k_proj = Linear(size, size, bias=False)
        self.v_proj = Linear(size, size, bias=False)
        self.o_proj = Linear(size, size, bias=False)
        self.qkv_weight: Tensor | None = None
        """The three matrices as one [3 * size, size], once fused: they are views of it."""

    def fuse_qkv(self) -> None:
        """Concatenate the query, key and value matrices, so that one product computes all three.

        The three parameters become views of one tensor, so that no memory is added.
        """
        parts = (self.q_proj, self.k_proj, self.v_proj)
        if any(type(part) is not Linear for part in parts):  # quantized layers have their own products
            return
        self.qkv_weight = torch.cat([part.weight.detach() for part in parts])
        for part, rows in zip(parts, self.qkv_weight.chunk(3), strict=True):
            part.weight = nn.Parameter(rows, requires_grad=False)

    def project(self, x: Tensor) -> Tensor:
        """Project x [N, tokens, hidden] to queries, keys and values [N, tokens, 3, heads, head_dim]."""
        if self.qkv_weight is not None and self.qkv_weight.data_ptr() == self.q_proj.weight.data_ptr():
            fused: Tensor = F.linear(x, self.qkv_weight).unflatten(-1, (3, -1, self.head_dim))
            return fused
        parts = [project(x).unflatten(-1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj)]
        return torch.stack(parts, dim=2)

    def forward(self, x: Tensor, real: int, repeated: slice, repeats: int, *, last: bool = False) -> Tensor:
        """Attend over x [N, real + padding, hidden]; the keys in ``repeated`` count ``repeats`` times.

        Return only the real tokens' rows if this is the ``last`` layer.
        """
        qkv = self.project(rounded_for(x, self.q_proj))
        scale = self.head_dim**-0.5
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        parts = []
        try:
            with on_side_stream(x):  # few queries, which alone would leave a GPU idle
                if not last:
                    parts.append(encoder_attention(q[:, :, real:], k[:, :, :real], v[:, :, :real], scale))
            if repeats > 1:
                q, k, v = repeat_padding_keys(qkv, scale, repeated.start, repeats).permute(2, 0, 3, 1, 4)
            parts.insert(0, encoder_attention(q[:, :, :real], k, v, scale)[..., : self.head_dim])
        finally:
            join_side_stream(x)  # also on errors: a capture cannot end before all streams have joined
        result: Tensor = self.o_proj(torch.cat([part.transpose(1, 2) for part in parts], dim=1).flatten(2))
        return result


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@contextmanager
def on_side_stream(x: Tensor) -> Iterator[None]:
    """Run the block in parallel with what follows, until ``join_side_stream``; no effect without a GPU."""
    if not x.is_cuda or torch.is_grad_enabled():
        yield
        return
    side = _side_stream(x.device)
    side.wait_stream(torch.cuda.current_stream(x.device))
    with torch.cuda.stream(side):
        yield


def join_side_stream(x: Tensor) -> None:
    """Make the current stream wait for what was started ``on_side_stream``."""
    if x.is_cuda and not torch.is_grad_enabled():
        torch.cuda.current_stream(x.device).wait_stream(_side_stream(x.device))


def repeat_padding_keys(qkv: Tensor, scale: float, first: int, repeats: int) -> Tensor:
    """Pad queries, keys, values [N, tokens, 3, heads, D] so that keys from ``first`` on count ``repeats`` times.

    Two extra dimensions carry the bias log(repeats) / scale, rounded to q's dtype, and the rounding error, so that it
    is exact enough in bfloat16 too. Head dimensions are padded to a multiple of 8 for fast attention kernels.
    """
    dim = qkv.shape[-1]
    bias = torch.tensor(math.log(repeats) / scale)
    rounded = bias.to(qkv.dtype).float()
    return pad_heads(qkv, -(-(dim + 2) // 8) * 8, first, float(rounded), float(bias - rounded))


class MllamaVisionMLP(nn.Module):
    def __init__(self, config: MllamaVisionConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        def branch(rows: Tensor) -> Tensor:
            result: Tensor = self.fc2(F.gelu(self.fc1(rounded_for(rows, self.fc1))))
            return result

        return by_rows(branch, x, self.fc1.out_features)


class MllamaVisionEncoderLayer(nn.Module):
    """A pre-norm transformer layer; global layers gate both branches with tanh."""

    def __init__(self, config: MllamaVisionConfig, gated: bool) -> None:
        super().__init__()
        self.self_attn = MllamaVisionAttention(config)
        self.mlp = MllamaVisionMLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.gated = gated
        if gated:
            self.gate_attn = nn.Parameter(torch.full((1,), math.pi / 4))
            self.gate_ffn = nn.Parameter(torch.full((1,), math.pi / 4))

    def forward(self, x: Tensor, real: int, repeated: slice, repeats: int, *, last: bool = False) -> Tensor:
        """Return the next states of x [N, real + padding, hidden], with ``last`` only of the real tokens."""
        attention = self.self_attn(self.input_layernorm(x), real, repeated, repeats, last=last)
        if last:
            x = x[:, :real].contiguous()
        norm, gate = self.post_attention_layernorm, self.gate_attn.tanh() if self.gated else None
        x, normed = add_layer_norm(x, attention, gate, norm.weight, norm.bias, norm.eps)
        mlp = self.mlp(normed)
        result: Tensor = x + (self.gate_ffn.tanh() * mlp if self.gated else mlp)
        return result


class MllamaVisionEncoder(nn.Module):
    def __init__(self, config: MllamaVisionConfig, layers: int, gated: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MllamaVisionEncoderLayer(config, gated) for _ in range(layers))
