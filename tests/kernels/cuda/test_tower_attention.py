"""The vision tower's attention kernel against torch's two calls, and against attention with the mask written out."""

import math

import pytest
import torch
from torch import Tensor

from tests.triton_here import DEVICE, apart  # isort: skip  (first: it prepares Triton)
from mllama_cli.kernels.cuda import tower_attention as kernel
from mllama_cli.kernels.cuda import tower_plan
from mllama_cli.kernels.tower import tower_attention, tower_kernel, two_calls

DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
CLOSE = 1e-2 if DEVICE.type == "cuda" else 1e-5
SMALL = tower_plan.Tile(rows=64, keys=32, warps=4, stages=2, resident=1)
HOPPER = DEVICE.type == "cuda" and torch.cuda.get_device_capability(DEVICE) == (9, 0)

SHAPES = {  # images, tokens, real, first counted, its repeats, rows
    "no padding": (1, 128, 128, 128, 1, 128),
    "padding alone": (1, 200, 190, 200, 1, 200),
    "counted keys, two images": (2, 250, 100, 110, 3, 250),
    "real rows alone": (1, 250, 100, 110, 3, 100),
    "counted from a block on": (1, 256, 120, 128, 2, 256),
    "blocks of each kind": (1, 384, 300, 330, 3, 384),
    "no unused tile": (1, 256, 250, 256, 0, 256),
    "parts of which some rows see no key": (1, 416, 101, 104, 1, 416),
}


def masked(qkv: Tensor, real: int, counted: int, repeats: int, rows: int) -> Tensor:
    """Attend in float64 with the mask and the counts written out."""
    q, k, v = qkv.double().permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) * qkv.shape[-1] ** -0.5
    if repeats > 1:
        scores[..., counted:] += math.log(repeats)
    scores[..., real:, real:] = -math.inf
    result: Tensor = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return result[:, :rows]


def drawn(images: int, tokens: int, *, dim: int = 80) -> Tensor:
    generator = torch.Generator().manual_seed(tokens)
    return torch.randn(images, tokens, 3, 2, dim, generator=generator).to(DEVICE, DTYPE)


@pytest.mark.parametrize("places", [132, 5])  # with 5 multiprocessors, some segments are parts
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@torch.inference_mode()
def test_each_kind_of_block(shape: tuple[int, ...], places: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images, tokens, real, counted, repeats, rows = shape
    monkeypatch.setattr(tower_plan, "multiprocessors", lambda _: places)
    tower_plan.plan.cache_clear()
    qkv = drawn(images, tokens)
    exact = masked(qkv, real, counted, repeats, rows)
    for tile in (SMALL, kernel.TILE):
        ours = kernel.tower_attention(qkv, real, counted, repeats, rows=rows, tile=tile)
        assert ours.shape == exact.shape
        assert apart(ours, exact) < CLOSE
    assert apart(two_calls(qkv, real, counted, repeats, rows=rows), exact) < CLOSE
    tower_plan.plan.cache_clear()


@torch.inference_mode()
def test_parts_of_a_block_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tower_plan, "multiprocessors", lambda _: 5)
    tower_plan.plan.cache_clear()
    tile = tower_plan.Tile(rows=128, keys=32, warps=4, stages=2, resident=1)
    assert tower_plan.plan(1, 2, 384, 300, 330, 384, tile, DEVICE).parts > 0
    qkv = drawn(1, 384)
    assert apart(kernel.tower_attention(qkv, 300, 330, 3, rows=384, tile=tile), masked(qkv, 300, 330, 3, 384)) < CLOSE
    tower_plan.plan.cache_clear()


def test_every_block_of_keys_is_in_one_segment() -> None:
    for real, counted, tokens in ((6404, 6432, 6432), (1601, 1608, 3216)):
        plan = tower_plan.plan(1, 16, tokens, real, counted, tokens, kernel.TILE, torch.device("cpu"))
        done: dict[tuple[int, int], list[range]] = {}
        for _, head, row, begin, end, *_ in plan.segments.tolist():
            done.setdefault((head, row), []).append(range(begin, end))
        assert len(done) == 16 * -(-tokens // kernel.TILE.rows)
        for (_, row), parts in done.items():
            seen = real if row >= real else tokens
            units = sorted(unit for part in parts for unit in part)
            assert units == list(range(-(-seen // kernel.TILE.keys)))


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="needs a GPU of compute capability 9.0")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@torch.inference_mode()
def test_the_kernel_that_is_chosen(shape: tuple[int, ...]) -> None:
    images, tokens, real, counted, repeats, rows = shape
    assert tower_kernel(DEVICE, DTYPE, 80) is not None
    qkv = drawn(images, tokens)
    ours = tower_attention(qkv, real, counted, repeats, rows=rows)
    assert apart(ours, masked(qkv, real, counted, repeats, rows)) < CLOSE
