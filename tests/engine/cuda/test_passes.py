"""Passes of several tokens as on a GPU, in Triton's interpreter: what the network's own operations give."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.triton_here import DEVICE  # isort: skip  (first: it prepares Triton)

from mllama_cli.engine.cuda.passes import MAX_READ_POSITIONS, CapturedPasses, PassShape, Piece, fits
from mllama_cli.engine.cuda.self_check import relative_error_of_pass
from mllama_cli.engine.forward import Network, forward
from mllama_cli.model.cache import CrossKVCache, KVCache
from mllama_cli.model.visibility import ImageSpan
from tests.checkpoints import config_dict, random_network
from tests.engine.cuda.replays import Replays, replay_on_cpu

pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="tests/gpu does this with captured graphs")

TEXT = {"hidden_size": 128, "num_hidden_layers": 3, "cross_attention_layers": [1], "num_attention_heads": 4}


@pytest.fixture(scope="module")
def network() -> Network:
    return random_network(config_dict(text=TEXT), seed=5)


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> Replays:
    return replay_on_cpu(monkeypatch)


@pytest.fixture
def passes(network: Network, replays: Replays) -> CapturedPasses:
    return CapturedPasses(network, torch.float32, torch.device("cpu"))


def images(network: Network, *tokens: int) -> CrossKVCache:
    """Return random keys and values of images with so many vision tokens."""
    config, generator = network.language_model.config, torch.Generator().manual_seed(2)
    shape = (1, config.num_key_value_heads, sum(tokens), config.head_dim)
    layers = [
        (torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))
        for _ in config.cross_attention_layers
    ]
    return CrossKVCache(layers, [tokens])


def begun(
    network: Network, ids: Sequence[int], cross: CrossKVCache | None = None, spans: Sequence[ImageSpan] = ()
) -> list[KVCache]:
    """Return two caches that hold the same ids."""
    caches = [KVCache(network.language_model.config) for _ in range(2)]
    for cache in caches:
        if ids:
            forward(network, torch.tensor([list(ids)]), cache, cross, [spans])
    return caches


def exact(network: Network, piece: Piece, cache: KVCache) -> Tensor:
    """Return the network's own logits of a piece, with a twin of its cache."""
    return forward(network, torch.tensor([list(piece.ids)]), cache, piece.cross, [piece.spans])


def require_equal(cache: KVCache, twin: KVCache) -> None:
    assert cache.lengths == twin.lengths
    end = cache.lengths[0]
    for mine, other in zip((*cache.keys, *cache.values), (*twin.keys, *twin.values), strict=True):
        torch.testing.assert_close(mine[:, :, :end], other[:, :, :end], atol=1e-4, rtol=1e-4)


SPANS = {
    "text": [],
    "an image": [ImageSpan(4, None)],
    "an image before": [ImageSpan(0, None)],
    "several": [ImageSpan(0, 3), ImageSpan(3, 9), ImageSpan(4, 9), ImageSpan(9, None)],
}


@pytest.mark.parametrize("cached", [0, 4])
@pytest.mark.parametrize("seen", SPANS)
def test_a_pass_gives_the_networks_logits_and_cache(
    network: Network, passes: CapturedPasses, seen: str, cached: int
) -> None:
    ids, spans = list(range(20, 32)), SPANS[seen]
    cross = images(network, *[9, 5, 7, 6][: len(spans)]) if spans else None
    cache, twin = begun(network, ids[:cached], cross, spans)
    piece = Piece(ids[cached:], cache, cross, spans)
    logits = passes.run([piece])
    torch.testing.assert_close(logits, exact(network, piece, twin), atol=1e-4, rtol=1e-4)
    require_equal(cache, twin)


def test_conversations_in_one_pass_do_not_see_each_other(network: Network, passes: CapturedPasses) -> None:
    cross, spans = images(network, 6), [ImageSpan(1, None)]
    first, second = begun(network, [5, 6, 7]), begun(network, [])
    pieces = [Piece([8, 9], first[0], None, []), Piece([1, 2, 3, 4, 5], second[0], cross, spans)]
    logits = passes.run(pieces)
    for row, (piece, caches) in enumerate(zip(pieces, (first, second), strict=True)):
        torch.testing.assert_close(logits[row : row + 1], exact(network, piece, caches[1]), atol=1e-4, rtol=1e-4)
        require_equal(*caches)


def test_passes_follow_a_cache_that_is_cut_and_grows(network: Network, passes: CapturedPasses) -> None:
    cache, twin = begun(network, range(250))
    for cut, ids in ((250, range(12)), (100, range(40, 47)), (107, range(3))):
        for each in (cache, twin):
            each.truncate(cut)
        piece = Piece(list(ids), cache, None, [])
        logits = passes.run([piece])
        torch.testing.assert_close(logits, exact(network, piece, twin), atol=1e-4, rtol=1e-4)
    require_equal(cache, twin)
    assert cache.capacity > 256


def test_logits_outlive_the_next_pass(network: Network, passes: CapturedPasses) -> None:
    cache, twin = begun(network, [])
    piece = Piece([1, 2, 3], cache, None, [])
    logits = passes.run([piece])
    passes.run([replace(piece, ids=[4, 5])])
    torch.testing.assert_close(logits, exact(network, piece, twin), atol=1e-4, rtol=1e-4)


def test_a_shape_is_captured_once(passes: CapturedPasses, network: Network, replays: Replays) -> None:
    shape = PassShape(16, False)
    assert shape not in passes
    passes.capture(shape)
    assert shape in passes
    assert not replays.done
    cache, _ = begun(network, [])
    passes.run([Piece([1, 2], cache, None, [])])
    assert len(replays.done) == 1
    passes.forget()
    assert shape not in passes


def test_what_fits_into_a_pass() -> None:
    assert fits([(0, 128)])
    assert not fits([(0, 129)])
    assert not fits([(0, 0)])
    assert fits([(5, 16)] * 8)
    assert not fits([(5, 2)] * 9)
    assert not fits([(MAX_READ_POSITIONS // 64, 100)])


@pytest.mark.parametrize("with_images", [False, True])
def test_the_self_check_knows_right_from_wrong(
    network: Network, passes: CapturedPasses, monkeypatch: pytest.MonkeyPatch, with_images: bool
) -> None:
    shape = PassShape(16, with_images)
    assert relative_error_of_pass(passes, network, shape) < 1e-4
    monkeypatch.setattr(passes, "run", lambda pieces: torch.ones(1, network.language_model.config.vocab_size))
    assert relative_error_of_pass(passes, network, shape) > 0.5
