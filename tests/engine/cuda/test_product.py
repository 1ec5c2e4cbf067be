"""Products of several layers for several rows: in one format, in several, and with adapters."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.triton_here import DEVICE, apart  # isort: skip  (first: it prepares Triton)

from mllama_cli.benchmark.random_network import random_matrix
from mllama_cli.engine.cuda.product import Product, allocate_sums
from mllama_cli.kernels.cuda.layout import interleave
from mllama_cli.kernels.ops import rms_norm
from mllama_cli.kernels.packed import dequantize
from mllama_cli.quantization.linear import AdaptedLinear, QuantizedLinear
from mllama_cli.quantization.schemes import Scheme

INPUTS, EPS = 128, 1e-5
SCHEMES = {"int4": Scheme(4, 32), "int8": Scheme(8, 32), "nf4": Scheme(4, 32, "nf4"), "fp8": Scheme(8, 0, "fp8")}


def layer(form: str, outputs: int) -> nn.Module:
    """Return a random layer in a form: plain, a scheme, or a scheme with an adapter, as in ``nf4 adapted``."""
    name, _, adapted = form.partition(" ")
    if name == "plain":
        plain = nn.Linear(INPUTS, outputs, bias=False, device=DEVICE)
        return plain.requires_grad_(False)
    made = (AdaptedLinear if adapted else QuantizedLinear)(INPUTS, outputs, SCHEMES[name], *([3] if adapted else []))
    made.fill(random_matrix(made, torch.float32, DEVICE))
    if isinstance(made, AdaptedLinear):
        made.fill_change(torch.randn(3, INPUTS, device=DEVICE) / 10, torch.randn(outputs, 3, device=DEVICE) / 2)
    return made


def dense(made: nn.Module) -> Tensor:
    """Return the matrix that a layer multiplies by."""
    if not isinstance(made, QuantizedLinear):
        return made.get_parameter("weight")
    change = made.lora_b @ made.lora_a if isinstance(made, AdaptedLinear) else 0
    return dequantize(made.packed) + change


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(
    "forms",
    [
        ("plain", "nf4", "nf4"),
        ("int4", "plain", "int8"),
        ("nf4 adapted", "plain", "fp8 adapted"),
        ("int8 adapted", "int8", "int8"),
        ("plain", "fp8"),
        ("nf4 adapted", "int8"),
    ],
    ids=" ".join,
)
@torch.inference_mode()
def test_layers_in_one_product(forms: Sequence[str], rows: int) -> None:
    torch.manual_seed(8)
    layers = [layer(form, 64 if len(forms) == 2 else 16 * (3 - index)) for index, form in enumerate(forms)]
    x, norm = torch.randn(rows, INPUTS, device=DEVICE), torch.rand(INPUTS, device=DEVICE) + 0.5
    expected = [F.linear(rms_norm(x, norm, EPS), dense(each)) for each in layers]
    wanted = torch.cat(expected, dim=1)
    for swiglu in (False, True) if len(layers) == 2 else (False,):
        product = Product(layers, rows, torch.float32, norm=norm, eps=EPS, swiglu=swiglu)
        sums = allocate_sums([product], DEVICE)
        if swiglu:
            wanted = interleave(F.silu(expected[0]) * expected[1], 8)
        for _ in range(2):  # sums are not left over from one step to the next
            sums.zero_()
            out = torch.full(wanted.shape, torch.nan, device=DEVICE)
            product.multiply(interleave(x, product.form), out, out_interleave=8 if swiglu else 1)
            assert apart(out, wanted) < 1e-3
