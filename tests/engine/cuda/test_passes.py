"""Passes of several tokens as on a GPU, in Triton's interpreter: what the network's own operations give."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.triton_here import DEVICE  # isort: skip  (first: it prepares Triton)

from mllama_cli.engine.batch.capacity import PASS_SHARE, kept_pass_bytes
from mllama_cli.engine.cuda.backend import CapturedDecoder
from mllama_cli.engine.cuda.leading_passes import LeadingPasses
from mllama_cli.engine.cuda.pass_shapes import MAX_READ_POSITIONS, PASS_TOKENS, ROW_GROUP, PassShape, fits
from mllama_cli.engine.cuda.passes import CapturedPasses, Piece
from mllama_cli.engine.cuda.rows_step import CROSS_SPLITS
from mllama_cli.engine.cuda.self_check import relative_error_of_pass
from mllama_cli.engine.forward import Network, forward
from mllama_cli.engine.weights.memory import pass_bytes, prefill_bytes
from mllama_cli.engine.weights.shapes import SHAPES
from mllama_cli.kernels.cuda.attention_api import Scratch, splits_for, tokens_together
from mllama_cli.model.cache import CrossKVCache, KVCache
from mllama_cli.model.image_kv import Float8KV
from mllama_cli.model.visibility import ImageSpan
from tests.checkpoints import config_dict, random_network
from tests.engine.cuda.replays import Echo, Replays, replay_on_cpu

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
    assert fits([(0, 256)])
    assert not fits([(0, 257)])
    assert not fits([(0, 0)])
    assert fits([(5, 30)] * 8)
    assert not fits([(5, 2)] * 9)
    assert not fits([(MAX_READ_POSITIONS // 64, 100)])


@pytest.mark.parametrize("float8", [False, True])
def test_other_ranks_run_the_same_passes(network: Network, replays: Replays, float8: bool) -> None:
    echo = Echo(network)
    passes = LeadingPasses(cast("Any", echo), network, torch.float32, torch.device("cpu"), float8=float8)
    passes.capture(PassShape(16, True))
    cross = images(network, 6)
    if float8:
        cross = CrossKVCache(Float8KV.of(list(cross.layers)), cross.image_tokens)
    echo.names.add_layers(number := echo.names.new(), cross.layers)
    echo.twins.add_layers(number, cross.layers)
    cache, twin = begun(network, [])
    piece = Piece([1, 2, 3], cache, cross, [ImageSpan(1, None)])
    for ids in ([1, 2, 3], [4, 5]):
        piece = replace(piece, ids=ids)
        logits = passes.run([piece])
        torch.testing.assert_close(logits, exact(network, piece, twin), atol=1e-4, rtol=1e-4)
        assert torch.equal(logits, echo.logits)
    assert len(replays.done) == 4


@pytest.mark.parametrize("with_images", [False, True])
def test_the_self_check_knows_right_from_wrong(
    network: Network, passes: CapturedPasses, monkeypatch: pytest.MonkeyPatch, with_images: bool
) -> None:
    shape = PassShape(16, with_images)
    assert relative_error_of_pass(passes, network, shape) < 1e-4
    monkeypatch.setattr(passes, "run", lambda pieces: torch.ones(1, network.language_model.config.vocab_size))
    assert relative_error_of_pass(passes, network, shape) > 0.5


def feed(decoder: CapturedDecoder, ids: Sequence[int], cache: KVCache) -> Tensor:
    for _ in decoder.prepare_feed(len(ids), with_images=False):
        pass
    return decoder.feed(ids, cache, None, [])


def test_prompts_of_one_size_are_read_by_a_pass_from_the_second_on(network: Network, replays: Replays) -> None:
    decoder = CapturedDecoder(network, torch.float32, torch.device("cpu"))
    counts = []
    for ids in (range(5), range(7), range(40), range(3)):
        cache, twin = begun(network, [50, 51])
        logits = feed(decoder, list(ids), cache)
        expected = forward(network, torch.tensor([list(ids)]), twin, None, [[]])
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        require_equal(cache, twin)
        counts.append(len(replays.done))
    assert counts == [0, 1, 1, 2]


def test_without_memory_for_a_pass_the_network_reads_on(
    network: Network, replays: Replays, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    decoder = CapturedDecoder(network, torch.float32, torch.device("cpu"))
    for _ in range(2):
        feed(decoder, [1, 2, 3], begun(network, [])[0])
    monkeypatch.setattr("mllama_cli.engine.cuda.passes.capture", full)
    for count, replayed in ((20, 1), (20, 1), (5, 2)):
        cache, twin = begun(network, [])
        logits = feed(decoder, list(range(count)), cache)
        expected = forward(network, torch.arange(count)[None], twin, None, [[]])
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        assert len(replays.done) == replayed, "what was captured before goes on"


@pytest.mark.parametrize("strict", [False, True])
def test_kernels_that_compute_something_else_are_not_used(
    network: Network, replays: Replays, monkeypatch: pytest.MonkeyPatch, strict: bool
) -> None:
    monkeypatch.setattr("mllama_cli.engine.cuda.build_cache.first_time", lambda *_: True)
    monkeypatch.setattr("mllama_cli.engine.cuda.self_check.relative_error_of_pass", lambda *_: float("nan"))
    monkeypatch.setenv("MLLAMA_STRICT_KERNELS", str(int(strict)))
    decoder = CapturedDecoder(network, torch.float32, torch.device("cpu"))
    assert list(decoder.prepare_feed(4, with_images=False)) == []
    if strict:
        with pytest.raises(RuntimeError, match="do not compute"):
            list(decoder.prepare_feed(4, with_images=False))
        return
    assert len(list(decoder.prepare_feed(4, with_images=False))) == 1
    feed(decoder, [1, 2, 3, 4], begun(network, [])[0])
    assert not replays.done


def test_a_smaller_pass_is_captured_after_a_larger_one(network: Network, passes: CapturedPasses) -> None:
    """Its warm-up reads the rows that the larger one named."""
    cache, twin = begun(network, [])
    passes.run([Piece(list(range(20, 50)), cache, None, [])])
    forward(network, torch.tensor([list(range(20, 50))]), twin, None, [[]])
    passes.capture(PassShape(16, with_images=False))
    piece = Piece([7, 8, 9], cache, None, [])
    torch.testing.assert_close(passes.run([piece]), exact(network, piece, twin), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", ["11b", "90b"])
def test_planned_memory_holds_the_buffers_of_all_passes(shape: str) -> None:
    text, meta = SHAPES[shape].text_config, torch.device("meta")
    heads, kv_heads, dim = text.num_attention_heads, text.num_key_value_heads, text.head_dim
    held, together = 0, min(ROW_GROUP, tokens_together(heads, kv_heads, torch.bfloat16))
    for rows in PASS_TOKENS:
        alone, seeing = splits_for(rows, kv_heads), splits_for(rows // together, kv_heads, CROSS_SPLITS)
        for splits in (alone, alone, seeing):  # of a pass without an image, then of one with an image
            scratch = Scratch(rows, heads, dim, splits, meta)
            held += sum(t.nbytes for t in (scratch.sums, scratch.largest, scratch.total, scratch.arrived))
        held += 2 * 2 * rows * heads * dim  # the output, in 16 bits
    planned = pass_bytes(SHAPES[shape], 2) - prefill_bytes(SHAPES[shape], 2, PASS_TOKENS[-1], 0)
    assert 0.7 * planned < held <= planned


def test_passes_are_captured_where_they_take_little_of_the_memory() -> None:
    config, gib = SHAPES["11b"], 2**30
    kept = [kept_pass_bytes(config, 2, free * gib) for free in range(80)]
    assert kept[1] == 0
    assert kept[-1] == pass_bytes(config, 2)
    assert kept == sorted(kept)
    assert all(held * PASS_SHARE <= free * gib for free, held in enumerate(kept))
