"""Test which product runs and that all agree, embedding lookup, and failing kernels."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mllama_cli.core.errors import CheckpointError
from mllama_cli.kernels import available, cuda, ops
from mllama_cli.kernels import packed as reference
from mllama_cli.kernels.codes import Code
from mllama_cli.kernels.cpu import compiler, linear, native, torch_ops
from mllama_cli.kernels.packed import PackedWeight
from tests.kernels.matrices import coded_matrix, error, exact, packed_matrix, rows

FLOAT32 = 1e-6
BFLOAT16 = 6e-3
INT8 = 7e-3
WAYS = ("ours", "torch's", "no compiler")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    way: str = request.param
    if way == "ours":
        if native.native() is None:
            pytest.skip("no C++ compiler")
    elif way == "torch's":
        monkeypatch.setenv("MLLAMA_CPU_KERNELS", "off")
    else:
        monkeypatch.setattr(native, "_built", lambda: (None, "c++ failed"))
    return way


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("n", "k", "groups"), [(64, 256, 1), (64, 256, 2), (48, 256, 8), (33, 96, 3), (7, 30, 5), (300, 1024, 8)]
)
def test_packed_products(way: str, bits: int, n: int, k: int, groups: int) -> None:
    weight = packed_matrix(n, k, bits, groups)
    for m in (1, 2, 8, 9, 40):
        x = rows(m, k)
        truth = exact(x, weight)
        assert error(ops.quantized_linear(x, weight, exact=True), truth) < FLOAT32
        assert error(ops.quantized_linear(x, weight), truth) < max(INT8, BFLOAT16) * (3 if k < 100 else 1)


@pytest.mark.parametrize("code", ["nf4", "fp4", "fp8"])
def test_products_with_codes(way: str, code: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "PART_BYTES", 64 * 1024)  # several parts
    for n, k, groups in ((64, 256, 4), (200, 192, 1), (7, 30, 5)):
        weight = coded_matrix(n, k, code, groups)
        for m in (1, 8, 9, 40):
            x = rows(m, k)
            truth = exact(x, weight)
            assert error(ops.quantized_linear(x, weight, exact=True), truth) < FLOAT32
            for narrow in (False, True):
                monkeypatch.setattr(linear, "multiplies_bfloat16", lambda narrow=narrow: narrow)
                assert error(ops.quantized_linear(x, weight), truth) < (BFLOAT16 if narrow else FLOAT32)
    assert ops.multiplies_packed(code, torch.device("cpu")) == (way == "ours")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_products_with_16_bits(way: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "PART_BYTES", 64 * 1024)  # several parts
    monkeypatch.setattr(linear, "multiplies_bfloat16", lambda: False)
    weight, bias = rows(200, 300, seed=3).to(dtype), rows(1, 200, seed=4)[0].to(dtype)
    for m in (1, 2, 8, 9, 40):
        x = rows(m, 300)
        truth = exact(x, weight) + bias.double()
        assert error(ops.linear(x, weight, bias, exact=True), truth) < FLOAT32
        rounded = way != "ours" and m <= linear.MAX_GEMV_ROWS
        assert error(ops.linear(x, weight, bias), truth) < (BFLOAT16 if rounded else FLOAT32)


def test_a_processor_that_multiplies_bfloat16_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "multiplies_bfloat16", lambda: True)
    weight, x = rows(64, 128).bfloat16(), rows(20, 128)
    assert torch.equal(ops.linear(x, weight), F.linear(x.bfloat16(), weight).float())
    assert error(ops.linear(x, weight, exact=True), exact(x, weight)) < FLOAT32


def test_a_bias_is_added_before_the_result_is_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "multiplies_bfloat16", lambda: True)
    weight, bias = rows(40, 128, seed=3).bfloat16(), rows(1, 40, seed=4)[0].bfloat16()
    for m in (1, 20):
        x = rows(m, 128)
        truth = exact(x, weight) + bias.double()
        assert error(ops.linear(x, weight, bias), truth) < BFLOAT16
        assert error(ops.linear(x, weight, bias, exact=True), truth) < FLOAT32


def test_rows_are_rounded_once_for_several_products_where_bfloat16_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = rows(20, 64), rows(40, 64, seed=3).bfloat16()
    monkeypatch.setattr(linear, "multiplies_bfloat16", lambda: True)
    narrow = ops.rounded_for(x, weight)
    assert narrow.dtype == torch.bfloat16
    assert torch.equal(ops.linear(narrow, weight).float(), ops.linear(x, weight)), "rounding first changes nothing"
    assert ops.rounded_for(x, weight, exact=True) is x
    assert ops.rounded_for(x, weight.float()) is x
    assert ops.rounded_for(x.requires_grad_(), weight) is x
    monkeypatch.setattr(linear, "multiplies_bfloat16", lambda: False)
    assert ops.rounded_for(rows(20, 64), weight).dtype == torch.float32


def test_rows_taken_some_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, seen = rows(2 * 21, 8).view(2, 21, 8), []

    def squared(part: Tensor) -> Tensor:
        seen.append(part.shape[-2])
        return part * part

    monkeypatch.setattr(ops, "BUFFER_BYTES", 10 * 32 * 4)
    with torch.no_grad():
        assert torch.equal(ops.by_rows(squared, x, 32), x * x)
    assert seen == [10, 10, 1]
    assert torch.equal(ops.by_rows(squared, x, 32), x * x)
    assert seen[3:] == [21], "training keeps everything anyway"


def test_float32_is_torchs_product_to_the_bit(way: str) -> None:
    weight, bias = rows(70, 90), rows(1, 70)[0]
    for m in (1, 5, 40):
        x = rows(m, 90, seed=2).reshape(1, m, 90)
        assert torch.equal(ops.linear(x, weight, bias), F.linear(x, weight, bias))


def test_shapes_and_formats_are_those_of_x(way: str) -> None:
    weight = packed_matrix(32, 64, 4)
    half = rows(32, 64).bfloat16()
    for shape in ((64,), (2, 64), (3, 2, 64), (2, 0, 64), (2, 3, 5, 64)):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x = torch.randn(shape).to(dtype)
            for out in (ops.quantized_linear(x, weight), ops.linear(x, half)):
                assert out.shape == (*shape[:-1], 32)
                assert out.dtype == dtype
    turned = torch.randn(64, 3).T
    assert torch.equal(ops.quantized_linear(turned, weight), ops.quantized_linear(turned.contiguous(), weight))


def test_gradients_flow_where_they_are_wanted(way: str) -> None:
    x = rows(3, 64).requires_grad_()
    ops.quantized_linear(x, packed_matrix(32, 64, 4)).sum().backward()
    assert x.grad is not None
    weight = rows(32, 64).bfloat16().requires_grad_()
    ops.linear(rows(3, 64).bfloat16(), weight).sum().backward()
    assert weight.grad is not None
    frozen = rows(32, 64).bfloat16()
    assert not ops.linear(rows(3, 64), frozen).requires_grad


def test_off_means_that_our_kernels_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.native() is not None or native.build_library().library is None
    monkeypatch.setenv("MLLAMA_CPU_KERNELS", "off")
    monkeypatch.setattr(native, "_built", lambda: pytest.fail("compiled"))
    assert native.native() is None
    available.prepare(torch.device("cpu"))
    ops.quantized_linear(rows(1, 64), packed_matrix(32, 64, 4))


def test_other_devices_get_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(reference, "quantized_linear", lambda x, weight: called.append(x.device.type))
    weight = packed_matrix(16, 32, 4)
    on_meta = PackedWeight(weight.packed.to("meta"), weight.scale.to("meta"), weight.shape, weight.bits)
    ops.quantized_linear(torch.empty(1, 32, device="meta"), on_meta)
    assert called == ["meta"]


def test_torchs_operators_are_used_where_they_can_be() -> None:
    for bits, groups in ((4, 2), (4, 8), (8, 1)):
        weight = packed_matrix(48, 256, bits, groups)
        assert torch_ops.supports(weight)
        x = rows(3, 256)
        assert error(torch_ops.packed(x, weight), exact(x, weight)) < BFLOAT16
        assert weight.packed in torch_ops._prepared
    before = len(torch_ops._prepared)
    del weight
    assert len(torch_ops._prepared) < before, "the second copy goes with the matrix"
    for n, k, bits, groups in ((40, 256, 4, 2), (48, 96, 8, 1), (48, 256, 4, 1024 // 256 * 4), (48, 256, 8, 2)):
        assert not torch_ops.supports(packed_matrix(n, k, bits, groups))


GOOD = packed_matrix(32, 64, 4, 2)
DAMAGED = {
    "too few words": replace(GOOD, packed=GOOD.packed[:, :-1].contiguous()),
    "too few rows": replace(GOOD, packed=GOOD.packed[:-1]),
    "a larger shape": replace(GOOD, shape=(32, 72)),
    "a negative shape": replace(GOOD, shape=(-32, 64)),
    "other bits": replace(GOOD, bits=8),
    "3 bits": replace(GOOD, bits=3),
    "too few scales": replace(GOOD, scale=GOOD.scale[:-1]),
    "groups that do not divide": replace(GOOD, scale=torch.ones(32, 3)),
    "no groups": replace(GOOD, scale=torch.ones(32, 0)),
    "whole scales": replace(GOOD, scale=GOOD.scale.int()),
    "flat scales": replace(GOOD, scale=GOOD.scale[:, 0]),
    "bytes": replace(GOOD, packed=GOOD.packed.view(torch.uint8)),
    "turned": replace(GOOD, scale=torch.ones(2, 32).T),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_matrix_is_refused(damage: str) -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        ops.quantized_linear(rows(1, 64), DAMAGED[damage])


def test_a_product_of_other_sizes_is_refused() -> None:
    for k in (63, 65, 128):
        with pytest.raises(ValueError, match="columns"):
            ops.quantized_linear(rows(1, k), GOOD)
    with pytest.raises(ValueError, match="columns"):
        ops.linear(rows(1, 60), rows(32, 64).bfloat16())


def test_rows_are_those_of_the_table() -> None:
    table, ids = torch.randn(11, 6, requires_grad=True), torch.tensor([[3, 0], [10, 3]])
    assert torch.equal(ops.embedding(ids, table), table[ids])
    ops.embedding(ids, table).sum().backward()
    assert table.grad is not None
    assert table.grad[3].eq(2).all()


def test_a_kernel_that_cannot_be_built_is_an_error_only_where_kernels_are_strict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: torch.Tensor) -> None:
        raise OSError("no C compiler")

    monkeypatch.setattr(torch, "ones", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(cuda, "elementwise", SimpleNamespace(silu_and_mul=fails), raising=False)
    device = torch.device("cuda", 99)
    monkeypatch.setenv("MLLAMA_STRICT_KERNELS", "1")
    with pytest.raises(OSError, match="no C compiler"):
        available.triton_available(device)
    monkeypatch.delenv("MLLAMA_STRICT_KERNELS")
    assert not available.triton_available(device)
    available.triton_available.cache_clear()


def test_an_old_gpu_and_a_cpu_are_no_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLLAMA_STRICT_KERNELS", "1")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not available.triton_available(torch.device("cuda", 98))
    assert not available.triton_available(torch.device("cpu"))
    available.triton_available.cache_clear()


def test_cpu_kernels_that_cannot_be_compiled_are_an_error_only_where_kernels_are_strict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLLAMA_STRICT_KERNELS", raising=False)
    monkeypatch.setattr(native, "_built", lambda: (None, "c++ failed"))
    monkeypatch.setattr(compiler, "find_compiler", lambda: ["c++"])
    assert available.prepare(torch.device("cpu")) == "Falling back to PyTorch on this CPU, which is slower: c++ failed"
    monkeypatch.setenv("MLLAMA_STRICT_KERNELS", "1")
    with pytest.raises(RuntimeError, match="could not be built"):
        available.prepare(torch.device("cpu"))
    monkeypatch.setenv("MLLAMA_CPU_KERNELS", "off")
    assert available.prepare(torch.device("cpu")) == ""
    monkeypatch.delenv("MLLAMA_CPU_KERNELS")
    monkeypatch.setattr(compiler, "find_compiler", lambda: None)
    available.prepare(torch.device("cpu"))


def test_a_kernel_that_fails_or_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> float:
        raise RuntimeError("no such instruction")

    monkeypatch.delenv("MLLAMA_STRICT_KERNELS", raising=False)
    assert available.runs_right(lambda: 0.002)
    assert not available.runs_right(lambda: 0.5)
    assert not available.runs_right(lambda: float("nan"))
    assert not available.runs_right(fails)
    monkeypatch.setenv("MLLAMA_STRICT_KERNELS", "1")
    for wrong in (0.5, float("nan")):
        with pytest.raises(RuntimeError, match="computes here"):
            available.runs_right(partial(float, wrong))
    with pytest.raises(RuntimeError, match="no such instruction"):
        available.runs_right(fails)


def test_product_and_gelu() -> None:
    x, weight, bias = rows(3, 64), rows(32, 64), rows(1, 32)[0]
    expected = F.gelu(F.linear(x, weight, bias))
    assert torch.allclose(ops.linear_gelu(x, weight, bias), expected, atol=1e-6)
    assert torch.allclose(ops.linear_gelu(x, weight, None), F.gelu(F.linear(x, weight)), atol=1e-6)
