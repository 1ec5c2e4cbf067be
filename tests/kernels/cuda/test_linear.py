"""One row times a matrix, plain and packed, with fused norm and epilogue, over odd shapes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.triton_here import DEVICE, apart  # isort: skip  (first: it prepares Triton)
from mllama_cli.kernels.codes import Code
from mllama_cli.kernels.cuda.dequantize import dequantize
from mllama_cli.kernels.cuda.gemv_api import gemv
from mllama_cli.kernels.cuda.gemv_tiles import FORMATS, GemvTile
from mllama_cli.kernels.cuda.layout import interleave
from mllama_cli.kernels.ops import rms_norm
from mllama_cli.kernels.packed import PackedWeight, pack
from mllama_cli.kernels.packed import dequantize as reference_dequantize

EPS = 1e-5


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


def packed(rows: int, inputs: int, bits: int, group: int) -> PackedWeight:
    q = torch.randint(-(1 << (bits - 1)), 1 << (bits - 1), (rows, inputs), device=DEVICE)
    scale = (torch.rand(rows, inputs // group, device=DEVICE) + 0.1) / 2**bits / inputs**0.5
    return PackedWeight(pack(q, bits), scale, (rows, inputs), bits)


def coded(rows: int, inputs: int, code: Code, group: int) -> PackedWeight:
    """Return a random matrix of numbers that are not integers."""
    bits = 8 if code == "fp8" else 4
    numbers = torch.randint(0, 256, (rows, inputs * bits // 8), dtype=torch.uint8, device=DEVICE)
    if code == "fp8":
        numbers = torch.randn(rows, inputs, device=DEVICE).to(torch.float8_e4m3fn).view(torch.uint8)
    scale = (torch.rand(rows, inputs // group, device=DEVICE) + 0.1) / inputs**0.5
    return PackedWeight(numbers.view(torch.int32), scale, (rows, inputs), bits, code)


@pytest.mark.parametrize(
    ("inputs", "rows"), [(64, (32, 16, 16)), (192, (50,)), (96, (7, 5)), (1000, (3,)), (4096, (9,))]
)
def test_norm_matrices_factor_and_residual_in_one_pass(inputs: int, rows: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, norm = drawn(2, inputs), drawn(inputs)
    weights = [drawn(n, inputs) / inputs**0.5 for n in rows]
    residual, factor = drawn(2, sum(rows)), torch.tensor([0.3], device=DEVICE)
    out = torch.full_like(residual, torch.nan)
    gemv(x, weights, out, norm=norm, eps=EPS, residual=residual, factor=factor)
    exact = residual + 0.3 * F.linear(rms_norm(x, norm, EPS), torch.cat(weights))
    assert apart(out, exact) < 1e-5


@pytest.mark.parametrize("tile", [GemvTile(2, 32, 1), GemvTile(4, 256, 4)], ids=["many steps", "one step"])
def test_gated_product_equals_silu_of_one_times_the_other(tile: GemvTile) -> None:
    torch.manual_seed(1)
    x, norm = drawn(1, 160), drawn(160)
    gate, up = drawn(37, 160) / 12, drawn(37, 160) / 12
    out = torch.full((1, 37), torch.nan, device=DEVICE)
    gemv(x, [gate, up], out, norm=norm, eps=EPS, swiglu=True, tile=tile)
    h = rms_norm(x, norm, EPS)
    assert apart(out, F.silu(F.linear(h, gate)) * F.linear(h, up)) < 1e-5


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("inputs", "group", "rows"), [(256, 32, (32, 16, 16)), (384, 128, (9,)), (1024, 1024, (20, 8)), (896, 128, (8,))]
)
def test_packed_matrices_equal_the_unpacked_ones(bits: int, inputs: int, group: int, rows: tuple[int, ...]) -> None:
    torch.manual_seed(2)
    x, norm, residual = drawn(1, inputs), drawn(inputs), drawn(1, sum(rows))
    weights = [packed(n, inputs, bits, group) for n in rows]
    form = 32 // bits
    out = torch.full_like(residual, torch.nan)
    gemv(interleave(x, form), weights, out, norm=interleave(norm, form), eps=EPS, residual=residual, in_interleave=form)
    matrix = torch.cat([reference_dequantize(w) for w in weights])
    assert apart(out, residual + F.linear(rms_norm(x, norm, EPS), matrix)) < 2e-4


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "tile",
    [GemvTile(16, 32, 1), GemvTile(16, 64, 2, programs=2), GemvTile(16, 32, 2, programs=2, chunks=2)],
    ids=["tiles", "persistent", "in chunks"],
)
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float16, 4e-4), (torch.bfloat16, 6e-3)])
def test_16_bit_activations_cost_little_more_than_rounding_the_product(
    bits: int, tile: GemvTile, dtype: torch.dtype, rounding: float
) -> None:
    torch.manual_seed(6)  # Triton's interpreter truncates to bfloat16 where a GPU rounds
    x, norm, weight = drawn(1, 1024, dtype=dtype), drawn(1024, dtype=dtype), packed(48, 1024, bits, 128)
    out, form = torch.full((1, 48), torch.nan, device=DEVICE, dtype=dtype), 32 // bits
    gemv(interleave(x, form), [weight], out, norm=interleave(norm, form), eps=EPS, in_interleave=form, tile=tile)
    exact = F.linear(rms_norm(x.float(), norm.float(), EPS), reference_dequantize(weight))
    assert apart(out, exact) < rounding


TILES = pytest.mark.parametrize(
    "tile",
    [GemvTile(4, 16, 1), GemvTile(4, 64, 2, programs=2), GemvTile(4, 16, 2, programs=2, chunks=4)],
    ids=["tiles", "persistent", "in chunks"],
)


@pytest.mark.parametrize("bits", [4, 8])
@TILES
def test_few_large_activations_cost_the_others_little(bits: int, tile: GemvTile) -> None:
    torch.manual_seed(7)
    x, weight, form = drawn(1, 1024), packed(24, 1024, bits, 128), 32 // bits
    x[0, ::50] *= 1000  # as in the residual stream of real models
    x[0, 512:] = 0
    out = torch.full((1, 24), torch.nan, device=DEVICE)
    gemv(interleave(x, form), [weight], out, in_interleave=form, tile=tile)
    assert apart(out, F.linear(x, reference_dequantize(weight))) < 1e-4


@pytest.mark.parametrize("bits", [4, 8])
@TILES
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_an_activation_that_is_not_finite_makes_all_results_so(bits: int, tile: GemvTile, bad: float) -> None:
    torch.manual_seed(8)
    x, weight, form = drawn(1, 1024), packed(24, 1024, bits, 128), 32 // bits
    x[0, 700] = bad
    out = torch.zeros(1, 24, device=DEVICE)
    gemv(interleave(x, form), [weight], out, in_interleave=form, tile=tile)
    assert not out.isfinite().any()


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_gated_product_interleaves_for_the_next_matrix(bits: int) -> None:
    torch.manual_seed(3)
    form = 32 // bits
    x, gate, up = drawn(1, 512), packed(64, 512, bits, 128), packed(64, 512, bits, 128)
    out = torch.full((1, 64), torch.nan, device=DEVICE)
    gemv(interleave(x, form), [gate, up], out, swiglu=True, in_interleave=form, out_interleave=form)
    exact = F.silu(F.linear(x, reference_dequantize(gate))) * F.linear(x, reference_dequantize(up))
    assert apart(out, interleave(exact, form)) < 4e-4


@pytest.mark.parametrize(
    ("bits", "inputs", "group", "rows", "tile"),
    [
        (4, 256, 32, (32, 16, 16), GemvTile(4, 8, 1, programs=2)),
        (4, 896, 128, (37,), GemvTile(8, 32, 1, programs=1)),
        (8, 384, 128, (9, 20), GemvTile(8, 32, 1, programs=2)),
        (4, 512, 64, (32, 16, 16), GemvTile(4, 4, 1, programs=2, chunks=4)),
        (4, 896, 128, (37,), GemvTile(8, 16, 2, programs=1, chunks=2)),
        (8, 384, 384, (9, 20), GemvTile(8, 16, 1, programs=2, chunks=2)),
    ],
)
def test_persistent_programs(bits: int, inputs: int, group: int, rows: tuple[int, ...], tile: GemvTile) -> None:
    torch.manual_seed(5)
    x, norm, residual = drawn(1, inputs), drawn(inputs), drawn(1, sum(rows))
    weights, form = [packed(n, inputs, bits, group) for n in rows], 32 // bits
    out = torch.full_like(residual, torch.nan)
    gemv(
        interleave(x, form), weights, out, norm=interleave(norm, form), eps=EPS, residual=residual, in_interleave=form,
        tile=tile,
    )  # fmt: skip
    h = rms_norm(x, norm, EPS)
    assert apart(out, residual + F.linear(h, torch.cat([reference_dequantize(w) for w in weights]))) < 2e-4

    gate, up = packed(37, inputs, bits, group), packed(37, inputs, bits, group)
    out = torch.full((1, 37), torch.nan, device=DEVICE)
    gemv(
        interleave(x, form),
        [gate, up],
        out,
        norm=interleave(norm, form),
        eps=EPS,
        swiglu=True,
        in_interleave=form,
        tile=tile,
    )
    assert apart(out, F.silu(F.linear(h, reference_dequantize(gate))) * F.linear(h, reference_dequantize(up))) < 4e-4


@pytest.mark.parametrize("code", ["nf4", "fp4", "fp8"])
@pytest.mark.parametrize(
    "tile", [None, GemvTile(4, 16, 1), GemvTile(8, 64, 2, programs=2)], ids=["chosen", "tiles", "persistent"]
)
def test_tables_and_floats_of_8_bits(code: Code, tile: GemvTile | None) -> None:
    torch.manual_seed(7)
    bits = 8 if code == "fp8" else 4
    form = 32 // bits
    x, norm, residual = drawn(2, 384), drawn(384), drawn(2, 48)
    weights = [coded(n, 384, code, 64 if bits == 4 else 128) for n in (32, 16)]
    out = torch.full_like(residual, torch.nan)
    gemv(
        interleave(x, form), weights, out, norm=interleave(norm, form), eps=EPS, residual=residual, in_interleave=form,
        tile=tile,
    )  # fmt: skip
    h = rms_norm(x, norm, EPS)
    assert apart(out, residual + F.linear(h, torch.cat([reference_dequantize(w) for w in weights]))) < 4e-4

    gate, up = coded(32, 384, code, 384), coded(32, 384, code, 384)
    out = torch.full((2, 32), torch.nan, device=DEVICE)
    gemv(interleave(h, form), [gate, up], out, swiglu=True, in_interleave=form, tile=tile)
    assert apart(out, F.silu(F.linear(h, reference_dequantize(gate))) * F.linear(h, reference_dequantize(up))) < 4e-4


@pytest.mark.parametrize("code", ["nf4", "fp4", "fp8"])
@TILES
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float16, 8e-4), (torch.bfloat16, 6e-3)])
def test_products_in_float16_cost_little_more_than_rounding_the_result(
    code: Code, tile: GemvTile, dtype: torch.dtype, rounding: float
) -> None:
    torch.manual_seed(8)
    form = 8 if code != "fp8" else 4
    x, norm = drawn(2, 384, dtype=dtype), drawn(384, dtype=dtype)
    x[0, ::50] *= 1000  # as in the residual stream of real models
    weights = [coded(n, 384, code, 64) for n in (32, 16)]
    out = torch.full((2, 48), torch.nan, device=DEVICE, dtype=dtype)
    gemv(interleave(x, form), weights, out, norm=interleave(norm, form), eps=EPS, in_interleave=form, tile=tile)
    h = rms_norm(x.float(), norm.float(), EPS)
    assert apart(out, F.linear(h, torch.cat([reference_dequantize(w) for w in weights]))) < rounding

    gate, up, x = coded(32, 384, code, 64), coded(32, 384, code, 64), drawn(2, 384, dtype=dtype)
    gated = torch.full((2, 32), torch.nan, device=DEVICE, dtype=dtype)
    gemv(interleave(x, form), [gate, up], gated, swiglu=True, in_interleave=form, tile=tile)
    exact = F.silu(F.linear(x.float(), reference_dequantize(gate))) * F.linear(x.float(), reference_dequantize(up))
    assert apart(gated, exact) < 2 * rounding


@pytest.mark.parametrize("code", ["nf4", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_an_activation_that_is_not_finite_is_not_lost_in_other_codes(
    code: Code, dtype: torch.dtype, bad: float
) -> None:
    torch.manual_seed(8)
    x, weight, form = drawn(1, 1024, dtype=dtype), coded(24, 1024, code, 128), 4 if code == "fp8" else 8
    x[0, 700] = bad
    out = torch.zeros(1, 24, device=DEVICE, dtype=dtype)
    gemv(interleave(x, form), [weight], out, in_interleave=form)
    assert not out.isfinite().any()


@pytest.mark.parametrize("code", ["nf4", "fp8"])
@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e6, 1e30])
def test_activations_of_any_size_are_multiplied_in_float16(code: Code, size: float) -> None:
    torch.manual_seed(9)
    x, weight, form = (drawn(1, 256) * size).bfloat16(), coded(16, 256, code, 128), 4 if code == "fp8" else 8
    out = torch.full((1, 16), torch.nan, device=DEVICE, dtype=torch.bfloat16)
    gemv(interleave(x, form), [weight], out, in_interleave=form)
    assert apart(out.double() / size, F.linear(x.double() / size, reference_dequantize(weight).double())) < 6e-3


@pytest.mark.parametrize("code", ["nf4", "fp4", "fp8"])
def test_every_code_is_unpacked_as_the_reference_does(code: Code) -> None:
    inputs = 256
    numbers = torch.arange(256, dtype=torch.uint8).repeat(3, 1)
    numbers[numbers & 127 == 127] = 0  # no numbers of E4M3
    bits = 8 if code == "fp8" else 4
    words = numbers[:, : inputs * bits // 8].contiguous().view(torch.int32).to(DEVICE)
    weight = PackedWeight(words, torch.tensor([[1.0], [0.37], [-1e-3]], device=DEVICE), (3, inputs), bits, code)
    assert torch.equal(dequantize(weight, torch.float32), reference_dequantize(weight))


@pytest.mark.parametrize(("bits", "inputs", "group"), [(4, 256, 64), (8, 200, 200), (4, 36, 12)])
def test_unpacking_for_many_rows_equals_the_reference(bits: int, inputs: int, group: int) -> None:
    torch.manual_seed(4)
    weight = packed(11, inputs, bits, group)
    assert torch.equal(dequantize(weight, torch.float32), reference_dequantize(weight))


def test_tiles_of_persistent_programs_have_room_for_whole_rows() -> None:
    for tiles in FORMATS.values():
        for by_quads in tiles.values():
            for quads, tile in by_quads.items():
                assert not tile.programs or tile.columns * tile.chunks == quads


@pytest.mark.skipif(DEVICE.type == "cpu", reason="rows of this length take the interpreter too long")
@pytest.mark.parametrize(("code", "bits", "group"), [
    ("int", 4, 128), ("int", 8, 128), ("nf4", 4, 64), ("fp4", 4, 64), ("fp8", 8, 0)
])  # fmt: skip
@pytest.mark.parametrize("inputs", [4096, 7168, 8192, 14336, 28672])
def test_tiles_of_released_models(code: Code, bits: int, group: int, inputs: int) -> None:
    torch.manual_seed(9)
    form = 32 // bits

    def weight(rows: int) -> PackedWeight:
        return packed(rows, inputs, bits, group) if code == "int" else coded(rows, inputs, code, group or inputs)

    x, norm = drawn(1, inputs, dtype=torch.bfloat16), drawn(inputs, dtype=torch.bfloat16)
    h = rms_norm(x.float(), norm.float(), EPS)
    for rows in ((300, 70, 70), (300,)):
        weights, out = [weight(n) for n in rows], torch.full((1, sum(rows)), torch.nan, device=DEVICE).bfloat16()
        gemv(interleave(x, form), weights, out, norm=interleave(norm, form), eps=EPS, in_interleave=form)
        assert apart(out, F.linear(h, torch.cat([reference_dequantize(w) for w in weights]))) < 6e-3
    gate, up, out = weight(301), weight(301), torch.full((1, 301), torch.nan, device=DEVICE).bfloat16()
    gemv(
        interleave(x, form), [gate, up], out, norm=interleave(norm, form), eps=EPS, swiglu=True, in_interleave=form
    )  # fmt: skip
    exact = F.silu(F.linear(h, reference_dequantize(gate))) * F.linear(h, reference_dequantize(up))
    assert apart(out, exact) < 1.2e-2
