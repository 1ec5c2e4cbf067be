"""Keys and values of images in 8 bits."""

import pytest
import torch
from torch import Tensor

from mllama_cli.model.cache import CrossKVCache
from mllama_cli.model.image_kv import Float8KV, LayerKV, token_count
from mllama_cli.model.visibility import CrossView, Segment

LAYERS, HEADS, DIM = 2, 3, 32


def drawn(tokens: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16, size: float = 1.0) -> list[LayerKV]:
    generator = torch.Generator().manual_seed(seed)

    def one() -> Tensor:
        return (size * torch.randn(1, HEADS, tokens, DIM, generator=generator)).to(dtype)

    return [(one(), one()) for _ in range(LAYERS)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_numbers_are_rounded_to_three_bits_after_the_first(dtype: torch.dtype) -> None:
    layers = drawn(50, dtype=dtype)
    rounded = Float8KV.of(layers)
    assert len(rounded) == LAYERS
    assert token_count(rounded) == token_count(layers) == 50
    for pair, exact in zip(rounded, layers, strict=True):
        for mine, whole in zip(pair, exact, strict=True):
            assert mine.dtype == dtype
            large = whole.abs() > 0.01  # smaller ones are multiples of 2**-9 times the scale
            assert ((mine - whole).abs() <= whole.abs() / 16)[large].all()
            assert not torch.equal(mine, whole)


def test_they_take_half_the_memory_of_16_bits() -> None:
    layers = drawn(400)
    whole = sum(tensor.nbytes for pair in layers for tensor in pair)
    assert whole / 2 <= Float8KV.of(layers).nbytes < 0.51 * whole


def test_heads_of_any_size_fit() -> None:
    layers = drawn(20)
    for keys, values in layers:
        keys[:, 0] *= 1e6
        keys[:, 1] *= 1e-6
        values[:, 2] = 0
    for pair, exact in zip(Float8KV.of(layers), layers, strict=True):
        for mine, whole in zip(pair, exact, strict=True):
            assert mine.isfinite().all()
            errors = (mine - whole).norm(dim=(2, 3)) / whole.norm(dim=(2, 3)).clamp(min=1e-9)
            assert errors.max() < 0.04


def test_what_is_no_number_stays_none() -> None:
    layers = drawn(5)
    layers[0][0][0, 1, 2, 3] = torch.nan
    layers[1][1][0, 0, 0, 0] = torch.inf
    rounded = list(Float8KV.of(layers))
    assert rounded[0][0][0, 1].isnan().all()
    assert rounded[1][1][0, 0].isnan().all()
    assert rounded[0][0][0, [0, 2]].isfinite().all()
    assert rounded[1][0].isfinite().all()


def test_joined_images_keep_their_numbers() -> None:
    images = [Float8KV.of(drawn(tokens, seed, size=size)) for tokens, seed, size in ((4, 1, 1), (7, 2, 40), (5, 3, 2))]
    joined = CrossKVCache.from_images([images[:2], [], images[2:]])
    assert joined is not None
    assert isinstance(joined.layers, Float8KV)
    assert joined.image_tokens == ((4, 7), (), (5,))
    whole = CrossKVCache.from_images([[list(image) for image in images[:2]], [], [list(images[2])]])
    assert whole is not None
    for mine, theirs in zip(joined.layers, whole.layers, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, atol=2**-9, rtol=0)  # of the smallest, a bit or two may be lost


def test_a_single_image_is_not_copied() -> None:
    image = Float8KV.of(drawn(6))
    joined = CrossKVCache.from_images([[image]])
    assert joined is not None
    assert joined.layers is image


def test_attention_reads_the_rounded_numbers() -> None:
    rounded = Float8KV.of(drawn(30, dtype=torch.float32))
    view, q = CrossView((Segment(0, 2, 0, 30),)), torch.randn(1, 2 * HEADS, 2, DIM)
    for index in range(LAYERS):
        mine = CrossKVCache(rounded, [[30]]).attend(index, q, view)
        assert torch.equal(mine, CrossKVCache(list(rounded), [[30]]).attend(index, q, view))
