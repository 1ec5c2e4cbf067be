"""Measure caption throughput: encoding, prefill and decoding in a batch, without reading files."""

import time
from collections.abc import Iterator
from copy import copy

import torch

from mllama_cli.benchmark.decode import SHORT_PROMPT_TOKENS, largest_ratio, random_ids
from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.capacity import automatic_slots
from mllama_cli.engine.batch.request import BatchRequest
from mllama_cli.engine.batch.run import run_batch
from mllama_cli.engine.model import LoadedModel
from mllama_cli.processing.image_processor import ImageTiles
from mllama_cli.processing.processor import ModelInputs

CAPTION_TOKENS = 64
MAX_BENCHMARK_SLOTS = {"cpu": 4, "cuda": 64}


def caption_rate(model: LoadedModel, *, tokens: int = CAPTION_TOKENS) -> tuple[float, int, int]:
    """Return (images per second, slots, tiles per image) for captions of ``tokens`` tokens of the largest images.

    On a GPU twice as many images as slots are captioned, so that start and end with idle slots count too.
    """
    model = copy(model)
    model.eos = frozenset()  # so that all answers have the same length
    cuda = model.device.type == "cuda"
    slots = min(automatic_slots(model, SHORT_PROMPT_TOKENS + 1, 1, tokens), MAX_BENCHMARK_SLOTS[model.device.type])
    vision = model.config.vision_config
    assert vision is not None
    ratio = largest_ratio(model)
    tiles = vision.tiles(ratio)
    pixels = torch.randn(tiles, vision.num_channels, vision.image_size, vision.image_size)
    image = ImageTiles(pixels, ratio, (vision.image_size, vision.image_size))

    def captioned(count: int, length: int) -> float:
        sampling = Sampling(max_tokens=length)

        def requests() -> Iterator[BatchRequest]:
            for number in range(count):
                ids = (model.config.image_token_index, *random_ids(model, SHORT_PROMPT_TOKENS))
                inputs = ModelInputs(ids, (ImagePart(str(number).encode(), str(number)),))
                yield BatchRequest(number, inputs, (image,), sampling)

        start = time.perf_counter()
        done = sum(reply.error is None for reply in run_batch(model, requests(), slots=slots))
        assert done == count
        return count / (time.perf_counter() - start)

    captioned(slots if cuda else 1, tokens if cuda else 2)  # builds kernels and captures graphs
    return captioned(2 * slots if cuda else slots, tokens), slots, tiles
