"""Test our C++ kernels against float64, with vector instructions and with plain loops."""

import ctypes
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from mllama_cli.kernels.codes import Code
from mllama_cli.kernels.cpu.build import build_library
from mllama_cli.kernels.cpu.compiler import find_compiler
from mllama_cli.kernels.cpu.native import Native
from mllama_cli.kernels.packed import PackedWeight, dequantize
from tests.kernels.matrices import coded_matrix, error, exact, packed_matrix, rounded_to_int8, rows

FLOAT32 = 1e-6
SHAPES = {  # (out, in, groups)
    "a whole row": (64, 256, 1),
    "groups of 128": (40, 512, 4),
    "groups of 64": (33, 192, 3),
    "groups of 32": (24, 128, 4),
    "an odd number of groups of 32": (9, 96, 3),
    "odd sizes": (37, 77, 1),
    "fewer than a vector": (5, 3, 1),
    "one number": (1, 1, 1),
    "several pieces of work": (300, 640, 5),
}
ROWS = (*range(1, 10), 13)


@pytest.fixture(scope="module", params=["vectors", "plain loops"])
def kernels(request: pytest.FixtureRequest) -> Native:
    if find_compiler() is None:
        pytest.skip("no C++ compiler")
    library = build_library(vectors=request.param == "vectors").library
    assert library is not None, "kernels.cpp does not compile"
    return Native(library)


@pytest.fixture(autouse=True, params=[1, 2], ids=["1 thread", "2 threads"])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_with_packed_matrices(kernels: Native, bits: int, shape: str) -> None:
    n, k, groups = SHAPES[shape]
    scale = (torch.float32, torch.bfloat16, torch.float16)[list(SHAPES).index(shape) % 3]
    weight = packed_matrix(n, k, bits, groups, scale)
    assert kernels.supports(weight)
    for m in ROWS:
        x = rows(m, k, seed=m)
        assert error(kernels.packed(x, weight), exact(x, weight)) < FLOAT32, f"{m} rows in float32"
        seen = exact(rounded_to_int8(x), weight)
        # A value halfway between two integers may be rounded either way.
        assert error(kernels.int8(x, weight), seen) < 2e-3 if k < 100 else 3e-4, f"{m} rows in 8 bits"


@pytest.mark.parametrize("code", ["nf4", "fp4", "fp8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_with_codes(kernels: Native, code: Code, shape: str) -> None:
    n, k, groups = SHAPES[shape]
    scale = (torch.float32, torch.bfloat16, torch.float16)[list(SHAPES).index(shape) % 3]
    weight = coded_matrix(n, k, code, groups, scale)
    for m in (*range(1, 10), 29):
        x = rows(m, k, seed=m)
        assert error(kernels.packed(x, weight), exact(x, weight)) < FLOAT32, f"{m} rows"


@pytest.mark.parametrize("code", ["nf4", "fp4", "fp8"])
def test_every_code_is_read_as_the_reference_reads_it(kernels: Native, code: Code) -> None:
    count = 16 if code != "fp8" else 256
    numbers = torch.arange(count, dtype=torch.uint8)
    numbers[numbers & 127 == 127] = 0  # no numbers of E4M3
    words = torch.zeros(count, 4, dtype=torch.uint8)
    words[:, 0] = numbers
    weight = PackedWeight(words.view(torch.int32), torch.ones(count, 1), (count, 1), 8 if code == "fp8" else 4, code)
    assert torch.equal(kernels.packed(torch.ones(1, 1), weight)[0], dequantize(weight)[:, 0])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("scale", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_scales_of_every_format(kernels: Native, bits: int, scale: torch.dtype) -> None:
    weight = packed_matrix(40, 352, bits, 11, scale)  # more groups than a vector holds, and some left over
    x = rows(3, 352)
    assert error(kernels.packed(x, weight), exact(x, weight)) < FLOAT32
    assert error(kernels.int8(x, weight), exact(rounded_to_int8(x), weight)) < 3e-4


@pytest.mark.parametrize("bits", [4, 8])
def test_activations_in_8_bits_cost_half_a_percent(kernels: Native, bits: int) -> None:
    weight = packed_matrix(256, 4096, bits, 32)
    for m in (1, 2, 7):
        x = rows(m, 4096)
        assert 1e-3 < error(kernels.int8(x, weight), exact(x, weight)) < 7e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(37, 77), (64, 256), (1, 1), (3, 5), (600, 513)], ids=str)
def test_products_with_matrices_of_16_bits(kernels: Native, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    weight = rows(*shape, seed=5).to(dtype)
    weight[0, 0] = 3e-6  # not normal in float16
    for m in ROWS:
        x = rows(m, shape[1])
        assert error(kernels.half(x, weight), exact(x, weight)) < FLOAT32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_number_of_16_bits_is_read_as_torch_reads_it(kernels: Native, dtype: torch.dtype) -> None:
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)[:, None]
    ours = kernels.half(torch.ones(1, 1), numbers)[0]
    assert torch.equal(ours.nan_to_num(12345.0), numbers[:, 0].float().nan_to_num(12345.0))


@pytest.mark.parametrize("form", [4, 8, "nf4", "fp4", "fp8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_decoding_is_dequantizing(kernels: Native, form: int | Code, shape: str) -> None:
    n, k, groups = SHAPES[shape]
    weight = packed_matrix(n, k, form, groups) if isinstance(form, int) else coded_matrix(n, k, form, groups)
    out = torch.empty(n - n // 3, k)
    kernels.decode(weight, n // 3, n, out)
    assert torch.equal(out, dequantize(weight)[n // 3 :])


@pytest.mark.parametrize("form", [4, 8, "nf4", "fp8"])
def test_nothing_is_read_past_the_end(kernels: Native, form: int | Code) -> None:
    """Place data at the end of a mapped file, past which a read crashes the process."""
    mmap = pytest.importorskip("mmap")
    libc = ctypes.CDLL(None)
    page = mmap.PAGESIZE
    for n, k, groups in ((3, 77, 1), (5, 96, 3), (8, 128, 1), (9, 1000, 1)):
        weight = packed_matrix(n, k, form, groups) if isinstance(form, int) else coded_matrix(n, k, form, groups)
        moved = []
        areas = []
        for tensor in (weight.packed, weight.scale):
            size = -(-tensor.nbytes // page) * page
            area = mmap.mmap(-1, size + page)
            start = ctypes.addressof(ctypes.c_char.from_buffer(area))
            assert libc.mprotect(ctypes.c_void_p(start + size), ctypes.c_size_t(page), 0) == 0
            area[size - tensor.nbytes : size] = bytes(tensor.reshape(-1).view(torch.uint8).numpy())
            whole = torch.frombuffer(area, dtype=torch.uint8, offset=size - tensor.nbytes, count=tensor.nbytes)
            moved.append(whole.view(tensor.dtype).view(tensor.shape))
            areas.append((area, start, size))
        at_the_end = replace(weight, packed=moved[0], scale=moved[1])
        for m in (1, 2, 3, 9):
            x = rows(m, k)
            assert torch.equal(kernels.packed(x, at_the_end), kernels.packed(x, weight))
            if weight.code == "int":
                assert torch.equal(kernels.int8(x, at_the_end), kernels.int8(x, weight))
        decoded = torch.empty(n, k)
        kernels.decode(at_the_end, 0, n, decoded)
        assert torch.equal(decoded, dequantize(weight))
        for _, start, size in areas:
            libc.mprotect(ctypes.c_void_p(start + size), ctypes.c_size_t(page), 3)


def test_values_that_are_not_finite_reach_the_result(kernels: Native) -> None:
    weight = packed_matrix(16, 128, 4)
    for bad in (float("nan"), float("inf"), -float("inf")):
        for m in (1, 7):
            x = rows(m, 128)
            x[0, 100] = bad
            out = kernels.int8(x, weight)
            assert not out[0].isfinite().any()
            assert out[1:].isfinite().all()
    x = torch.zeros(3, 128)
    assert (kernels.int8(x, weight) == 0).all()
    assert kernels.int8(x + 1e-44, weight).isfinite().all()


def test_threads_give_equal_results(kernels: Native) -> None:
    weight = packed_matrix(500, 640, 4, 5)
    x = rows(3, 640)
    now = kernels.int8(x, weight), kernels.packed(x, weight)
    torch.set_num_threads(4)
    for _ in range(50):
        assert torch.equal(kernels.int8(x, weight), now[0])
        assert torch.equal(kernels.packed(x, weight), now[1])


@pytest.mark.parametrize("dim", [8, 64, 128])
@pytest.mark.parametrize("keys", [1, 7, 255, 256, 257, 1000])
def test_attention_of_few_rows(kernels: Native, dim: int, keys: int) -> None:
    cache = rows(2 * 3 * 1100, dim, seed=keys).view(2, 3, 1100, dim)  # more than is filled, as a cache has
    k, v = cache[:, :, :keys], (cache * 2 + 1)[:, :, :keys]
    for m in (1, 3, 4, 8):
        q = 5 * rows(2 * 3 * m, dim).view(2, 3, m, dim)
        assert kernels.supports_attention(q, k, v)
        weights = (q.double() @ k.double().mT * dim**-0.5).softmax(-1)
        assert error(kernels.attention(q, k, v), weights @ v.double()) < FLOAT32
    q[0, 1, 0, 0] = float("nan")
    out = kernels.attention(q, k, v)
    assert out[0, 1, 0].isnan().all()
    assert out[0, 0].isfinite().all()


@pytest.mark.parametrize("size", [4096, 77, 5, 1])
def test_norm_equals_the_reference(kernels: Native, size: int) -> None:
    x, weight = rows(3, size), rows(1, size, seed=2)[0]
    wide = x.double()
    truth = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5) * weight.double()
    assert error(kernels.rms_norm(x, weight, 1e-5), truth) < FLOAT32


@pytest.mark.parametrize("angles", [1, 2], ids=["shared angles", "angles of each"])
def test_rotation_of_heads_stored_row_by_row(kernels: Native, angles: int) -> None:
    x = rows(6, 4 * 16).view(2, 3, 4, 16).transpose(1, 2)  # [B, heads, L, D] as a projection leaves it
    angle = rows(angles * 3, 16, seed=3).view(angles, 1, 3, 16)
    angle[..., 8:] = angle[..., :8]
    first, second = x.double().chunk(2, dim=-1)
    truth = x.double() * angle.cos() + torch.cat((-second, first), dim=-1) * angle.sin()
    assert error(kernels.apply_rope(x, angle.cos(), angle.sin()), truth) < FLOAT32


@pytest.mark.parametrize("count", [1, 13, 4096, 40_000])
def test_gate_equals_the_reference_and_never_overflows(kernels: Native, count: int) -> None:
    gate, up = rows(1, count) * 20, rows(1, count, seed=4)
    gate[0, 0] = -300
    gate[0, -1] = 300
    truth = torch.nn.functional.silu(gate.double()) * up.double()
    assert error(kernels.silu_and_mul(gate, up), truth) < FLOAT32
