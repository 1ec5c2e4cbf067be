"""The vision tower's transformer layers, in a form that needs no attention mask: see kernels/tower.py."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllama_cli.core.config import MllamaVisionConfig
from mllama_cli.kernels.ops import add_layer_norm, by_rows
from mllama_cli.kernels.tower import tower_attention
from mllama_cli.model.layers import Linear, rounded_for


class Branch(NamedTuple):
    """What a layer adds to its input at its end."""

    values: Tensor
    gate: Tensor | None
    """One factor of all values."""

    def added_to(self, x: Tensor) -> Tensor:
        """Return x + gate * values."""
        return x + (self.values if self.gate is None else self.gate * self.values)


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
        rows = real if last else x.shape[1]
        result: Tensor = self.o_proj(tower_attention(qkv, real, repeated.start, repeats, rows=rows))
        return result


class MllamaVisionMLP(nn.Module):
    def __init__(self, config: MllamaVisionConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        def branch(rows: Tensor) -> Tensor:
            result: Tensor = self.fc2(self.fc1.forward_gelu(rounded_for(rows, self.fc1)))
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

    def forward(
        self, x: Tensor, branch: Branch | None, real: int, repeated: slice, repeats: int, *, last: bool = False
    ) -> tuple[Tensor, Branch]:
        """Return the next states of x [N, real + padding, hidden], with ``last`` only of the real tokens.

        States are a sum that is still to be done, together with the norm that comes next: x and ``branch``.
        """
        norm = self.input_layernorm
        if branch is None:
            normed = norm(x)
        else:
            x, normed = add_layer_norm(x, branch.values, branch.gate, norm.weight, norm.bias, norm.eps)
        attention = self.self_attn(normed, real, repeated, repeats, last=last)
        if last:
            x = x[:, :real].contiguous()
        norm, gate = self.post_attention_layernorm, self.gate_attn.tanh() if self.gated else None
        x, normed = add_layer_norm(x, attention, gate, norm.weight, norm.bias, norm.eps)
        return x, Branch(self.mlp(normed), self.gate_ffn.tanh() if self.gated else None)


class MllamaVisionEncoder(nn.Module):
    def __init__(self, config: MllamaVisionConfig, layers: int, gated: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MllamaVisionEncoderLayer(config, gated) for _ in range(layers))
