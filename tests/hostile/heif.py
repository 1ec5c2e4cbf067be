"""AVIF and HEIC files: cut, with flipped bits, absurd declared sizes and many images, decoded in a worker."""

import random
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path

from PIL import Image

from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.conversation import ImagePart
from mllama_cli.processing.decoding import Decoder
from tests.hostile.cases import Case
from tests.processing.pictures import file_of, noise
from tests.processing.samples import SAMPLES

SIZES = ((0, 0), (1, 2**31), (13_000, 13_000), (65_535, 65_535), (2**31 - 1, 2**31 - 1), (2**32 - 1, 2**32 - 1))
"""Declared widths and heights; a decoder may multiply them in 32 bits."""
_BITS = (1, 8, 64)
_SIZE_BOX = b"ispe\0\0\0\0"
_ITEM_COUNTS = (b"iinf\0\0\0\0", b"iloc\0\0\0\0\x44\0", b"iloc\0\0\0\0\x44\x40")


def cases() -> Iterator[Case]:
    """Yield what becomes of each file."""
    for format in ("AVIF", "HEIC"):
        for index, data in enumerate(SAMPLES[format]):
            name = f"{format} {index}"
            for tenth in range(10):
                yield _of(f"{name} cut at {tenth}0 %", data[: len(data) * tenth // 10])
            for width, height in SIZES:
                yield _of(f"{name} of {width} x {height}", with_size(data, width, height))
            for count in _ITEM_COUNTS:
                if count in data:
                    place = data.index(count) + len(count)
                    many = data[:place] + b"\xff\xff" + data[place + 2 :]
                    yield _of(f"{name} of 65,535 items in {count[:4].decode()}", many)
            for seed in range(20):
                yield _of(f"{name} with flipped bits {seed}", flipped(data, seed))
    yield Case("AVIF of 2,000 frames", _attempt, heavy=True, prepare=lambda folder: _write(folder, _avif_of(2000)))
    if SAMPLES["HEIC"]:
        yield Case("HEIC of 300 images", _attempt, heavy=True, prepare=lambda folder: _write(folder, _heic_of(300)))
    large: dict[str, Callable[[], bytes]] = {
        "AVIF of 100 million pixels": lambda: file_of(Image.new("RGB", (10_000, 10_000)), "AVIF", speed=10),
    }
    for name, make in large.items():
        yield Case(name, _attempt, heavy=True, prepare=lambda folder, make=make: _write(folder, make()))


def with_size(data: bytes, width: int, height: int) -> bytes:
    """Return a file that declares another size of each image."""
    start, *others = data.split(_SIZE_BOX)
    size = struct.pack(">II", width, height)
    return _SIZE_BOX.join([start, *(size + other[8:] for other in others)])


def flipped(data: bytes, seed: int) -> bytes:
    """Return a file with some bits flipped, anywhere or among the boxes before the pixels."""
    chosen = random.Random(seed)
    changed = bytearray(data)
    end = chosen.choice((len(data), data.index(b"mdat")))
    for _ in range(chosen.choice(_BITS)):
        changed[chosen.randrange(end)] ^= 1 << chosen.randrange(8)
    return bytes(changed)


def _avif_of(count: int) -> bytes:
    frames = [noise(16, 16).rotate(90 * index) for index in range(4)] * (count // 4)
    return file_of(frames[0], "AVIF", save_all=True, append_images=frames[1:], speed=10)


def _heic_of(count: int) -> bytes:
    import pillow_heif

    file = pillow_heif.HeifFile()
    for _ in range(count):
        file.add_from_pillow(noise(64, 64))
    buffer = BytesIO()
    file.save(buffer)
    return buffer.getvalue()


def _file(folder: Path) -> Path:
    return folder / "p"


def _write(folder: Path, data: bytes) -> None:
    _file(folder).write_bytes(data)


def _attempt(folder: Path) -> None:
    _decode(_file(folder).read_bytes())


def _of(name: str, data: bytes) -> Case:
    return Case(name, lambda _: _decode(data))


def _decode(data: bytes) -> None:
    with closing(Decoder(1)) as decoder:
        decoder.decode(ImagePart(data, "p"), ImageProcessorConfig())
