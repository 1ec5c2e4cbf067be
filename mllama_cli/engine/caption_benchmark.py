"""How many pictures a second are captioned: encoded, prefilled and answered side by side, without reading files."""

import time
from types import SimpleNamespace
from typing import Any

import torch

from mllama_cli.engine.benchmark import PROMPT, Subject, largest_ratio, random_ids
from mllama_cli.engine.picture_encoder import PictureEncoder
from mllama_cli.engine.slot_count import MOST, NEWCOMERS, automatic_slots
from mllama_cli.engine.slots import Prompt, Slots
from mllama_cli.processing.image_processor import ImageTiles

TOKENS = 64


def caption_rate(subject: Subject, *, tokens: int = TOKENS) -> tuple[float, int, int]:
    """(pictures a second, pictures at once, tiles each) for captions of ``tokens`` tokens, largest pictures."""
    engine: Any = SimpleNamespace(
        network=subject.network,
        config=subject.config,
        dtype=subject.dtype,
        device=subject.device,
        work=subject.work,
    )
    count = automatic_slots(engine, PROMPT + 1, 1, tokens)
    count = min(count, 32 if subject.device.type == "cuda" else 4, MOST[subject.device.type])
    slots, encoder = Slots(engine, count), PictureEncoder(engine, 0)
    vision = subject.config.vision_config
    assert vision is not None
    ratio = largest_ratio(subject)
    tiles = vision.tiles(ratio)
    pixels = torch.randn(tiles, vision.num_channels, vision.image_size, vision.image_size)
    picture = ImageTiles(pixels, ratio, (vision.image_size, vision.image_size))

    def captions() -> None:
        newest: list[int] = []
        for start in range(0, count, NEWCOMERS):
            names = [f"{number}" for number in range(start, min(start + NEWCOMERS, count))]
            encoder.encode(dict.fromkeys(names, picture))
            ids = (subject.config.image_token_index, *random_ids(subject, PROMPT))
            logits = slots.fill([Prompt(ids, (name,), (encoder.get(name),)) for name in names])
            newest += logits.argmax(-1).tolist()
            encoder.trim()
        for _ in range(tokens - 1):
            newest = slots.step(newest).argmax(-1).tolist()
        for slot in reversed(range(count)):
            slots.release(slot)

    captions()  # kernels are built, graphs captured
    start = time.perf_counter()
    captions()
    return count / (time.perf_counter() - start), count, tiles
