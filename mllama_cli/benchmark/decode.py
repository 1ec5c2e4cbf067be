"""How fast a model runs here, beside how fast its bytes can be read at all."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mllama_cli.core.config import MllamaConfig
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.cuda.operands import groups, operand
from mllama_cli.engine.device import free_bytes
from mllama_cli.engine.fast import FastDecoding
from mllama_cli.engine.forward import DecodeInput, Network, prefill
from mllama_cli.kernels.packed import PackedWeight
from mllama_cli.model.cache import CrossKVCache, KVCache, LayerKV
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.model.text import MllamaCrossAttentionDecoderLayer
from mllama_cli.model.visibility import image_spans

PROMPT = 24
"""Text tokens of a short question."""

LONG_PROMPT = 2048
ENOUGH = 3.0
"""Seconds after which a measurement is repeated no more."""


@dataclass(frozen=True)
class Figure:
    """One thing measured. ``nbytes`` is what each token reads at least, ``share`` its part of the read bandwidth."""

    name: str
    value: float
    unit: str
    nbytes: int | None = None
    share: float | None = None


@dataclass(frozen=True)
class Subject:
    """What is measured: a network with its weights, and how it decodes."""

    network: Network
    fast: FastDecoding
    config: MllamaConfig
    dtype: torch.dtype
    device: torch.device
    prefill_rows: int


def read_bandwidth(device: torch.device) -> float:
    """Bytes a second at which this device reads its memory: the best of several sums over more than any cache holds."""
    size = 2**30
    if device.type == "cuda":
        size = min(4 * 2**30, free_bytes(device) // 4)
    values = torch.ones(size // 4, dtype=torch.float32, device=device)
    return values.nbytes / min(_repeated(lambda: values.sum(), device))


def token_bytes(network: Network, *, sees: bool) -> int:
    """Bytes of weights that a decoded token reads; those of the cross-attention layers only where it ``sees``."""
    layers = network.language_model.layers
    kinds = [isinstance(layer, MllamaCrossAttentionDecoderLayer) for layer in layers for _ in range(4)]
    total = 0
    for modules, crossing in zip(groups(network), [*kinds, False], strict=True):
        if sees or not crossing:
            total += sum(_nbytes(operand(module)) for module in modules)
    return total


def benchmark(subject: Subject, *, tokens: int | None = None) -> Iterator[Figure]:
    """Figures as they are measured; medians. ``tokens`` are decoded for each (default: 256 on a GPU, 16 on a CPU)."""
    device = subject.device
    count = tokens or (256 if device.type == "cuda" else 16)
    bandwidth = read_bandwidth(device)
    yield Figure("memory, read", bandwidth / 1e9, "GB/s")
    network, vision = subject.network, subject.config.vision_config
    image: tuple[Tensor, int] | None = None
    encoded: list[LayerKV] | None = None
    if isinstance(network, MllamaForConditionalGeneration) and vision is not None:
        for ratio in (1, largest_ratio(subject)):
            tiles = vision.tiles(ratio)
            shape = (tiles, vision.num_channels, vision.image_size, vision.image_size)
            image = (torch.randn(shape).to(device, subject.dtype), ratio)
            seconds = _median(partial(subject.fast.encode_image, network, *image), device)
            yield Figure(f"vision, {tiles} tile{'s' * (tiles > 1)}", 1000 * seconds, "ms")
        assert image is not None
        encoded = subject.fast.encode_image(network, *image)
        yield Figure(f"first token, image and {PROMPT} tokens", 1000 * first_token(subject, image), "ms")
    yield Figure(f"first token, {PROMPT} tokens", 1000 * first_token(subject, None), "ms")
    length = min(LONG_PROMPT, subject.config.text_config.max_position_embeddings // 2)
    seconds = _median(lambda: prefilled(subject, random_ids(subject, length), None), device)
    yield Figure(f"prefill, {length} tokens", length / seconds, "tokens/s")
    for name, seen in (("decode, text", None), ("decode, after an image", encoded)):
        if name == "decode, text" or seen is not None:
            rate = _decode_rate(subject, seen, count)
            nbytes = token_bytes(network, sees=seen is not None)
            if seen is not None:
                nbytes += sum(tensor.nbytes for pair in seen for tensor in pair)
            yield Figure(name, rate, "tokens/s", nbytes, rate * nbytes / bandwidth)


def largest_ratio(subject: Subject) -> int:
    """The aspect ratio id with the most tiles, the squarest of them."""
    vision = subject.config.vision_config
    assert vision is not None
    ratios = range(1, len(vision.supported_aspect_ratios) + 1)
    return max(ratios, key=lambda id_: (vision.tiles(id_), min(vision.supported_aspect_ratios[id_ - 1])))


def random_ids(subject: Subject, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    high = min(subject.config.text_config.vocab_size, 128000)
    ids: list[int] = torch.randint(0, high, (length,), generator=generator).tolist()
    return ids


def _prompt(subject: Subject, *, sees: bool) -> list[int]:
    return [subject.config.image_token_index] * sees + random_ids(subject, PROMPT)


def prefilled(subject: Subject, ids: list[int], encoded: list[LayerKV] | None) -> tuple[KVCache, Tensor]:
    cache = KVCache(subject.config.text_config, dtype=subject.dtype, device=subject.device)
    cross = CrossKVCache.from_images([[encoded]]) if encoded else None
    spans = image_spans(ids, subject.config.image_token_index)
    logits = torch.empty(0)
    for _, step in prefill(subject.network, ids, cache, cross, spans, subject.device, subject.prefill_rows):
        logits = step
    return cache, logits


def decoded(subject: Subject, encoded: list[LayerKV] | None, count: int) -> Iterator[int]:
    """Prefill a short prompt and decode ``count`` tokens."""
    ids = _prompt(subject, sees=encoded is not None)
    cache, logits = prefilled(subject, ids, encoded)
    cross = CrossKVCache.from_images([[encoded]]) if encoded else None
    spans = image_spans(ids, subject.config.image_token_index)
    for _ in subject.fast.prepare(subject.network, sees=encoded is not None, sampling=Sampling()):
        pass
    start = DecodeInput(logits, cache, cross, spans, Sampling(), ids, count)
    tokens = subject.fast.decode(subject.network, start)
    with closing(tokens):
        for token in tokens:
            yield token.id


def first_token(subject: Subject, image: tuple[Tensor, int] | None) -> float:
    network = subject.network

    def once() -> None:
        encoded = None
        if image is not None and isinstance(network, MllamaForConditionalGeneration):
            encoded = subject.fast.encode_image(network, *image)
        next(decoded(subject, encoded, 1))

    return _median(once, subject.device)


def _decode_rate(subject: Subject, encoded: list[LayerKV] | None, count: int) -> float:
    def once() -> float:
        tokens = decoded(subject, encoded, count + 1)
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
    """Seconds of up to seven runs after two to warm up (on a GPU the second may capture a graph)."""

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
    while len(runs) < 7 and time.perf_counter() - begin < ENOUGH:
        runs.append(once())
    return runs
