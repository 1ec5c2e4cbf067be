"""Kernels over many rows against their torch references."""

import torch
import torch.nn.functional as F

from tests.triton_here import DEVICE, apart  # isort: skip  (first: it prepares Triton)
from mllama_cli.kernels import ops as plain
from mllama_cli.kernels.cuda import elementwise as fused


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE, requires_grad=True)  # so that ``plain`` takes torch's operations


def test_norms_and_gate() -> None:
    torch.manual_seed(0)
    x, branch, weight, bias, gate = drawn(3, 5, 96), drawn(3, 5, 96), drawn(96), drawn(96), drawn(1)
    assert apart(fused.rms_norm(x, weight, 1e-5), plain.rms_norm(x, weight, 1e-5)) < 1e-6
    assert apart(fused.silu_and_mul(x, branch), plain.silu_and_mul(x, branch)) < 1e-6
    for ours, exact in (
        (
            fused.add_layer_norm(x, branch, gate, weight, bias, 1e-5),
            plain.add_layer_norm(x, branch, gate, weight, bias, 1e-5),
        ),
    ):
        assert apart(ours[0], exact[0]) < 1e-6
        assert apart(ours[1], exact[1]) < 1e-6


def test_exact_gelu() -> None:
    x = torch.cat((torch.linspace(-9, 9, 5001), torch.tensor([0.0, -1e-8, 1e4, -1e4]))).to(DEVICE)
    assert (fused.gelu_(x.clone()) - F.gelu(x)).abs().max() < 1e-6


def test_rotation_of_heads_stored_row_by_row() -> None:
    torch.manual_seed(1)
    x = drawn(2, 7, 3, 32).transpose(1, 2)  # [B, heads, L, D] as a projection leaves it
    for batch in (1, 2):
        angles = torch.randn(batch, 1, 7, 32, device=DEVICE)
        angles[..., 16:] = angles[..., :16]
        cos, sin = angles.cos(), angles.sin()
        assert apart(fused.apply_rope(x, cos, sin), plain.apply_rope(x, cos, sin)) < 1e-6


def test_padded_heads() -> None:
    torch.manual_seed(2)
    qkv = drawn(2, 9, 3, 5, 20)
    assert torch.equal(fused.pad_heads(qkv, 24, 6, 0.5, 0.25), plain.pad_heads(qkv, 24, 6, 0.5, 0.25))
