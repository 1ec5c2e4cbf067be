"""Measure a model's speed, and decoding also relative to the memory bandwidth."""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.cuda.operands import groups, operand
from mllama_cli.engine.device import free_bytes
from mllama_cli.engine.forward import DecodeInput, Network
from mllama_cli.engine.model import LoadedModel
from mllama_cli.engine.vision import encoded_bytes
from mllama_cli.kernels.packed import PackedWeight
from mllama_cli.model.image_kv import LayerKV
from mllama_cli.model.text import MllamaCrossAttentionDecoderLayer
from mllama_cli.model.visibility import image_spans

SHORT_PROMPT_TOKENS = 24
"""Text tokens of a short question."""

LONG_PROMPT_TOKENS = 2048
MAX_SECONDS = 3.0
"""A measurement that has taken longer is not repeated."""

SLOW_IMAGE_SECONDS = 10.0
"""If an image of one tile takes longer, as on a CPU, images of more tiles and captions are not measured."""


@dataclass(frozen=True)
class Figure:
    """One measurement. Each token reads at least ``nbytes``, which takes ``share`` of the read bandwidth."""

    name: str
    value: float
    unit: str
    nbytes: int | None = None
    share: float | None = None


def read_bandwidth(device: torch.device) -> float:
    """Return the bytes per second at which the device reads memory, the best of several sums over a large tensor."""
    size = 2**30
    if device.type == "cuda":
        size = min(4 * 2**30, free_bytes(device) // 4)
    values = torch.ones(size // 4, dtype=torch.float32, device=device)
    return values.nbytes / min(_repeated(lambda: values.sum(), device))


def peak_bytes() -> int:
    """Return the most memory that this process has held, mapped files included; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def token_bytes(network: Network, *, with_images: bool) -> int:
    """Return the bytes of weights that a decoded token reads, with the cross-attention layers only after images."""
    layers = network.language_model.layers
    kinds = [isinstance(layer, MllamaCrossAttentionDecoderLayer) for layer in layers for _ in range(4)]
    total = 0
    for modules, is_cross in zip(groups(network), [*kinds, False], strict=True):
        if with_images or not is_cross:
            total += sum(_nbytes(operand(module)) for module in modules)
    return total


def benchmark(model: LoadedModel, *, tokens: int | None = None) -> Iterator[Figure]:
    """Yield figures as they are measured; decode ``tokens`` tokens (default: 256 on a GPU, 16 on a CPU)."""
    device = model.device
    count = tokens or (256 if device.type == "cuda" else 16)
    bandwidth = read_bandwidth(device)
    yield Figure("memory, read", bandwidth / 1e9, "GB/s")
    vision = model.config.vision_config
    image: tuple[Tensor, int] | None = None
    encoded: list[LayerKV] | None = None
    if vision is not None:
        for ratio in (1, largest_ratio(model)):
            tiles = vision.tiles(ratio)
            shape = (tiles, vision.num_channels, vision.image_size, vision.image_size)
            image = (torch.randn(shape).to(device, model.dtype), ratio)
            seconds = _median(partial(model.vision.encode, *image), device)
            yield Figure(f"vision, {tiles} tile{'s' * (tiles > 1)}", 1000 * seconds, "ms")
            if seconds > SLOW_IMAGE_SECONDS:
                break
        assert image is not None
        encoded = model.vision.encode(*image)
        yield Figure(f"first token, image and {SHORT_PROMPT_TOKENS} tokens", 1000 * first_token(model, image), "ms")
    yield Figure(f"first token, {SHORT_PROMPT_TOKENS} tokens", 1000 * first_token(model, None), "ms")
    length = min(LONG_PROMPT_TOKENS, model.config.text_config.max_position_embeddings // 2)
    seconds = _median(lambda: prefilled(model, random_ids(model, length), None), device)
    yield Figure(f"prefill, {length} tokens", length / seconds, "tokens/s")
    for image_kv in (None, encoded) if encoded else (None,):
        rate = decode_rate(model, image_kv, count)
        nbytes = token_bytes(model.network, with_images=image_kv is not None) + encoded_bytes(image_kv or [])
        name = "decode, text" if image_kv is None else "decode, after an image"
        yield Figure(name, rate, "tokens/s", nbytes, rate * nbytes / bandwidth)
    if device.type == "cpu" and (peak := peak_bytes()):
        yield Figure("memory, peak", peak / 1e9, "GB")


def largest_ratio(model: LoadedModel) -> int:
    """Return the aspect ratio id of the squarest canvas with the most tiles."""
    vision = model.config.vision_config
    assert vision is not None
    ratios = range(1, len(vision.supported_aspect_ratios) + 1)
    return max(ratios, key=lambda id_: (vision.tiles(id_), min(vision.supported_aspect_ratios[id_ - 1])))


def random_ids(model: LoadedModel, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    high = min(model.config.text_config.vocab_size, 128000)
    ids: list[int] = torch.randint(0, high, (length,), generator=generator).tolist()
    return ids


def prefilled(model: LoadedModel, ids: list[int], encoded: list[LayerKV] | None, count: int = 1) -> DecodeInput:
    """Prefill a prompt; return the input to decode ``count`` tokens greedily."""
    cache = model.new_cache()
    cross = model.vision.join([[encoded]]) if encoded else None
    spans = image_spans(ids, model.config.image_token_index)
    logits = torch.empty(0)
    for _ in model.decoder.prepare_feed(len(ids), with_images=encoded is not None):
        pass
    for _, step in model.decoder.prefill(ids, cache, cross, spans, model.prefill_chunk):
        logits = step
    return DecodeInput(logits, cache, cross, spans, Sampling(), ids, budget=count)


def decoded(model: LoadedModel, encoded: list[LayerKV] | None, count: int) -> Iterator[int]:
    """Prefill a short prompt and yield ``count`` decoded token ids."""
    ids = [model.config.image_token_index] * (encoded is not None) + random_ids(model, SHORT_PROMPT_TOKENS)
    start = prefilled(model, ids, encoded, count)
    for _ in model.decoder.prepare(with_images=encoded is not None, sampling=start.sampling):
        pass
    with closing(model.decoder.tokens(start)) as tokens:
        for token in tokens:
            yield token.id


def first_token(model: LoadedModel, image: tuple[Tensor, int] | None) -> float:
    """Return the median seconds from a short prompt, with an image or not, to its first token."""

    def once() -> None:
        encoded = model.vision.encode(*image) if image is not None else None
        next(decoded(model, encoded, 1))

    return _median(once, model.device)


def decode_rate(model: LoadedModel, encoded: list[LayerKV] | None, count: int) -> float:
    """Return the tokens per second of ``count`` steps after an encoded image or a short text, the better of two."""

    def once() -> float:
        tokens = decoded(model, encoded, count + 1)
        next(tokens)
        start = time.perf_counter()
        for _ in tokens:
            pass
        return count / (time.perf_counter() - start)

    once()
    return max(once() for _ in range(2))


def _nbytes(weight: Tensor | PackedWeight) -> int:
    return weight.packed.nbytes + weight.scale.nbytes if isinstance(weight, PackedWeight) else weight.nbytes


def _median(action: Callable[[], object], device: torch.device) -> float:
    return statistics.median(_repeated(action, device))


def _repeated(action: Callable[[], object], device: torch.device) -> list[float]:
    """Return the seconds of up to seven runs, after one to warm up and, on a GPU, one that may capture a graph."""

    def once() -> float:
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    begin = time.perf_counter()
    once()
    if device.type == "cuda":
        once()
    runs = [once()]
    while len(runs) < 7 and time.perf_counter() - begin < MAX_SECONDS:
        runs.append(once())
    return runs
