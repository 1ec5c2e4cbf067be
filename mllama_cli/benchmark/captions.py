"""How many pictures a second are captioned: encoded, prefilled and answered side by side, without reading files."""

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from mllama_cli.benchmark.decode import PROMPT, Subject, largest_ratio, random_ids
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.capacity import automatic_slots
from mllama_cli.engine.batch.request import BatchRequest
from mllama_cli.engine.batch.run import run_batch
from mllama_cli.processing.image_processor import ImageTiles
from mllama_cli.processing.processor import ModelInputs

TOKENS = 64
SLOTS = {"cpu": 4, "cuda": 64}


def caption_rate(subject: Subject, *, tokens: int = TOKENS) -> tuple[float, int, int]:
    """(pictures a second, pictures at once, tiles each) for captions of ``tokens`` tokens, largest pictures.

    Twice as many pictures as slots are captioned, so beginning and end, when not all slots are busy, count too.
    """
    engine, cuda = _engine(subject), subject.device.type == "cuda"
    count = min(automatic_slots(engine, PROMPT + 1, 1, tokens), SLOTS[subject.device.type])
    vision = subject.config.vision_config
    assert vision is not None
    ratio = largest_ratio(subject)
    tiles = vision.tiles(ratio)
    pixels = torch.randn(tiles, vision.num_channels, vision.image_size, vision.image_size)
    picture = ImageTiles(pixels, ratio, (vision.image_size, vision.image_size))

    def captioned(pictures: int, length: int) -> float:
        sampling = Sampling(max_tokens=length)

        def requests() -> Iterator[BatchRequest]:
            for number in range(pictures):
                ids = (subject.config.image_token_index, *random_ids(subject, PROMPT))
                image: Any = SimpleNamespace(digest=f"{number}")
                yield BatchRequest(number, ModelInputs(ids, (image,)), (picture,), sampling)

        start = time.perf_counter()
        done = sum(reply.error is None for reply in run_batch(engine, requests(), slots=count))
        assert done == pictures
        return pictures / (time.perf_counter() - start)

    captioned(count if cuda else 1, tokens if cuda else 2)  # kernels are built, graphs captured
    return captioned(2 * count if cuda else count, tokens), count, tiles


def _engine(subject: Subject) -> Any:
    """What a batch needs of an engine, for a network that may have no tokenizer: answers are counted, not read."""
    return SimpleNamespace(
        network=subject.network,
        config=subject.config,
        dtype=subject.dtype,
        device=subject.device,
        prefill_rows=subject.prefill_rows,
        fast=subject.fast,
        sees=True,
        eos=frozenset(),
        processor=SimpleNamespace(tokenizer=SimpleNamespace(token_bytes=lambda id_: b"")),
    )
