"""Layers of the vision tower whose products with large matrices are in float8, on GPUs that compute them faster.

Those of queries, keys and values, and of the MLP. Attention itself keeps 16 bits, and the product after it, which would
gain little.
"""

import torch
from torch import Tensor, nn

from mllama_cli.kernels import float8
from mllama_cli.kernels.float8 import Rounded
from mllama_cli.kernels.tower import tower_attention
from mllama_cli.model.layers import Linear
from mllama_cli.model.vision import MllamaVisionModel
from mllama_cli.model.vision_layers import Branch, MllamaVisionEncoderLayer


class Float8Matrix(nn.Module):
    """A matrix [out, in] with a scale for each output, and its bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        rounded = Rounded.rows(weight.detach())
        assert rounded.scales is not None
        self.weight = nn.Parameter(rounded.values, requires_grad=False)
        self.scales = nn.Parameter(rounded.scales, requires_grad=False)
        self.bias = bias

    @property
    def rounded(self) -> Rounded:
        return Rounded(self.weight, self.scales)


class Float8VisionLayer(nn.Module):
    """Computes what a ``MllamaVisionEncoderLayer`` does, whose other weights it shares."""

    def __init__(self, layer: MllamaVisionEncoderLayer) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.qkv = Float8Matrix(torch.cat([part.weight.detach() for part in parts]))
        self.fc1, self.fc2 = (Float8Matrix(linear.weight, linear.bias) for linear in (mlp.fc1, mlp.fc2))
        self.o_proj, self.head_dim = attention.o_proj, attention.head_dim
        self.input_layernorm, self.post_attention_layernorm = layer.input_layernorm, layer.post_attention_layernorm
        self.gated = layer.gated
        if layer.gated:
            self.gate_attn, self.gate_ffn = layer.gate_attn, layer.gate_ffn

    def forward(
        self, x: Tensor, branch: Branch | None, real: int, repeated: slice, repeats: int, *, last: bool = False
    ) -> tuple[Tensor, Branch]:
        """Do as ``MllamaVisionEncoderLayer.forward``."""
        norm = self.input_layernorm
        values, gate = (torch.zeros_like(x), None) if branch is None else branch
        x, rounded = float8.add_layer_norm(x, values, gate, norm.weight, norm.bias, norm.eps)
        qkv = float8.linear(rounded, self.qkv.rounded, None, x.dtype).unflatten(-1, (3, -1, self.head_dim))
        rows = real if last else x.shape[1]
        attention = self.o_proj(tower_attention(qkv, real, repeated.start, repeats, rows=rows))
        if last:
            x = x[:, :real].contiguous()
        norm, gate = self.post_attention_layernorm, self.gate_attn.tanh() if self.gated else None
        x, rounded = float8.add_layer_norm(x, attention, gate, norm.weight, norm.bias, norm.eps)
        inner = float8.linear_gelu(rounded, self.fc1.rounded, self.fc1.bias, x.dtype)
        mlp = float8.linear(inner, self.fc2.rounded, self.fc2.bias, x.dtype)
        return x, Branch(mlp, self.gate_ffn.tanh() if self.gated else None)


def can_round(tower: MllamaVisionModel) -> bool:
    """Return whether ``round_tower`` takes a tower: one of plain matrices, of sizes for which there is a product."""
    for layer in (*tower.transformer.layers, *tower.global_transformer.layers):
        assert isinstance(layer, MllamaVisionEncoderLayer)
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.fc1, mlp.fc2):
            if type(linear) is not Linear or not float8.takes(linear.weight):
                return False
    return True


def round_tower(tower: MllamaVisionModel) -> None:
    """Round the tower's layers, one after the other."""
    for encoder in (tower.transformer, tower.global_transformer):
        for index, layer in enumerate(encoder.layers):
            assert isinstance(layer, MllamaVisionEncoderLayer)
            encoder.layers[index] = Float8VisionLayer(layer)
