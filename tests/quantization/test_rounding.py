"""Rounding errors on fixed weights for every scheme, and special values."""

import pytest
import torch
from torch import Tensor

from mllama_cli.kernels.packed import dequantize, unpack
from mllama_cli.quantization.rounding import METHODS, Method, NotFiniteError, quantize_matrix
from mllama_cli.quantization.schemes import Scheme

GROUP = Scheme(4, 128)


def gaussian(rows: int = 512, inputs: int = 2048) -> Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(0)) * 0.02


def heavy(rows: int = 512, inputs: int = 2048) -> Tensor:
    """Student t with 5 degrees of freedom: a normal variable over the root of a chi-squared one."""
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(rows, inputs, generator=generator)
    chi = torch.randn(5, rows, inputs, generator=generator).square().sum(0)
    return normal / (chi / 5).sqrt()


def error(weight: Tensor, scheme: Scheme, method: Method) -> float:
    """Measure the error of the dequantized matrix instead of trusting the quantizer's figure."""
    packed = quantize_matrix(weight, scheme, method).weight
    return float((dequantize(packed) - weight.float()).square().sum() / weight.float().square().sum())


def test_round_to_nearest_on_gaussian_weights_costs_1_23_percent() -> None:
    assert error(gaussian(), GROUP, "rtn") == pytest.approx(0.0123, abs=0.00005)


def test_search_on_gaussian_weights_costs_at_most_1_02_percent() -> None:
    assert error(gaussian(), GROUP, "search") <= 0.0102


def test_search_on_heavy_tails_saves_a_sixth() -> None:
    nearest, searched = (error(heavy(), GROUP, method) for method in ("rtn", "search"))
    assert nearest == pytest.approx(0.0258, abs=0.0001)
    assert searched <= 0.0218 / 0.0264 * nearest


@pytest.mark.parametrize("scheme", [Scheme(b, g) for b in (4, 8) for g in (128, 64, 32, 0)], ids=str)
def test_search_is_never_worse_than_rounding_to_nearest(scheme: Scheme) -> None:
    for weight in (gaussian(64, 512), heavy(64, 512)):
        assert error(weight, scheme, "search") <= error(weight, scheme, "rtn")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_reported_error_is_that_of_the_dequantized_matrix(method: Method, dtype: torch.dtype) -> None:
    weight = gaussian(40, 384).to(dtype)
    rounded = quantize_matrix(weight, GROUP, method)
    assert rounded.weight.scale.dtype == dtype
    assert rounded.error / rounded.energy == pytest.approx(error(weight, GROUP, method), rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_each_row_is_rounded_on_its_own(method: Method) -> None:
    """Slices, threads and blocks of any size write the same bytes."""
    weight = gaussian(700, 1024)
    whole = quantize_matrix(weight, GROUP, method).weight
    parts = [quantize_matrix(weight[a:b], GROUP, method).weight for a, b in ((0, 1), (1, 333), (333, 700))]
    assert torch.equal(whole.packed, torch.cat([part.packed for part in parts]))
    assert torch.equal(whole.scale, torch.cat([part.scale for part in parts]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unusual_groups_get_positive_scales_and_their_values(method: Method, dtype: torch.dtype) -> None:
    weight = torch.zeros(4, 256, dtype=dtype)
    weight[1] = 1e-7  # a subnormal number of float16
    weight[2, 3] = -60000
    weight[3] = torch.finfo(dtype).max / 2
    packed = quantize_matrix(weight, GROUP, method).weight
    scale = packed.scale.float()
    assert bool((torch.isfinite(scale) & (scale > 0)).all())
    assert not unpack(packed)[0].any()
    read = dequantize(packed).float()
    assert read[2, 3] == pytest.approx(-60000, rel=0.07)
    torch.testing.assert_close(read[3], weight[3].float(), rtol=0.07, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("method", METHODS)
def test_nan_and_infinity_are_refused(bad: float, method: Method) -> None:
    weight = gaussian(300, 512)
    weight[299, 511] = bad
    with pytest.raises(NotFiniteError):
        quantize_matrix(weight, GROUP, method)


def test_groups_that_do_not_divide_are_refused_and_fitted() -> None:
    with pytest.raises(ValueError, match="do not divide"):
        quantize_matrix(gaussian(4, 192), GROUP)
    assert Scheme(4, 128).fitted(192) == Scheme(4, 64)
    assert Scheme(4, 128).fitted(96) == Scheme(4, 32)
    assert Scheme(8, 64).fitted(40) == Scheme(8, 0)
    assert Scheme(4, 0).fitted(40) == Scheme(4, 0)


def test_torch_keeps_its_threads() -> None:
    before = torch.get_num_threads()
    quantize_matrix(gaussian(300, 1024), GROUP)
    assert torch.get_num_threads() == before
