"""Pictures: cut, damaged, of odd side data, small files of large pictures, and files of other kinds."""

import random
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from PIL import Image

from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.conversation import ImagePart
from mllama_cli.processing.decoding import Decoder
from mllama_cli.processing.images import open_image
from tests.hostile.cases import Case
from tests.processing.pictures import (
    ICON_HEAD,
    JPEG_SEGMENTS,
    PNG_CHUNKS,
    SIDE,
    file_of,
    j2k,
    noise,
    png_chunk,
    raw_png,
    raw_png_of,
    tiff,
)
from tests.processing.samples import SAMPLES

OTHER_KINDS = {
    "nothing": b"",
    "a byte": b"\xff",
    "zeros": bytes(4096),
    "text": b"hello\n" * 99,
    "a web page": b"<!doctype html><html></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "pdf": b"%PDF-1.7\n",
    "PostScript, which Pillow would start Ghostscript for": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "Photoshop": b"8BPS\0\1" + bytes(99),
    "a program": b"\x7fELF" + bytes(99),
    "zip": b"PK\3\4" + bytes(99),
    "a film": b"\0\0\0\x18ftypmp42" + bytes(99),
    "sound": b"RIFF\0\0\0\0WAVEfmt ",
    "a pickle": b"\x80\4\x95cposix\nsystem\n(S'exit 3'\ntR.",
}
BOMBS: dict[str, Callable[[], bytes]] = {
    "png 1 x 3.5 M": lambda: raw_png_of(1, 3_500_000, 8, 6),
    "png rgba 178 M": lambda: raw_png_of(SIDE, SIDE, 8, 6),
    "png grey 16 bits 178 M": lambda: raw_png_of(SIDE, SIDE, 16, 0, png_chunk(b"tRNS", b"\0\0")),
    "png that lies about its size": lambda: raw_png(178_000_000, 1, 16, 6, b""),
    "png of texts": lambda: file_of(noise())[:33] + PNG_CHUNKS["64 MB of texts"] * 4 + file_of(noise())[33:],
    "tiff of floats 178 M": lambda: tiff(SIDE, SIDE, 32, 1, {278: SIDE}),
    "tiff of a huge tile": lambda: tiff(16, 16, 32, 1, {322: 65536, 323: 65536, 324: 8, 325: 8}),
    "tiff rgba 100 M": lambda: file_of(Image.new("RGBA", (10_000, 10_000)), "TIFF", compression="tiff_deflate"),
    "jpeg progressive 81 M": lambda: file_of(Image.new("RGB", (9000, 9000)), "JPEG", progressive=True),
    "jpeg of 5000 scans": lambda: _scans(5000),
    "jpeg of 90 scans": lambda: _scans(90),
    "jpeg 2000 of 171 bytes": lambda: j2k(13_000, 13_000, 3),
    "jpeg 2000 of small blocks": lambda: j2k(SIDE, SIDE, block=0),
    "jpeg 2000 of small tiles": lambda: j2k(SIDE, SIDE, tile=16),
    "jpeg 2000 of 900 M": lambda: j2k(30_000, 30_000),
    "icon of a large png": lambda: ICON_HEAD + raw_png_of(9000, 9000, 8, 6),
    "icon of a large bitmap": lambda: ICON_HEAD + struct.pack("<IiiHH", 40, 60_000, 60_000, 1, 32) + bytes(99),
    "webp 169 M": lambda: file_of(Image.new("RGB", (13_000, 13_000)), "WEBP", method=0),
    "gif 178 M": lambda: b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(3) + b",\0\0\0\0\xff\xff\xff\xff\0\2\0;",
    "qoi 178 M": lambda: b"qoif" + struct.pack(">IIBB", SIDE, SIDE, 4, 0) + b"\xfd" * 3000 + bytes(7) + b"\1",
    "qoi 16 M": lambda: b"qoif" + struct.pack(">IIBB", 4000, 4000, 4, 0) + b"\xfd" * 260_000 + bytes(7) + b"\1",
    "plain ppm 81 M": lambda: b"P3 9000 9000 255\n" + b"1 " * 100,
    "ppm of 10 bits": lambda: b"P6 9000 9000 1023\n" + bytes(100),
    "bmp 178 M": lambda: b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, SIDE, SIDE, 1, 24, *[0] * 6),
}


def _scans(count: int) -> bytes:
    data = file_of(Image.linear_gradient("L").resize((2000, 2000)), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * count + b"\xff\xd9"


def cases() -> Iterator[Case]:
    """Yield what becomes of each picture."""
    for format, samples in SAMPLES.items():
        for index, data in enumerate(samples):
            name = f"{format.lower()} {index}"
            yield from (_of(f"{name} cut at {tenth}0 %", data[: len(data) * tenth // 10]) for tenth in range(1, 10))
            yield _of(f"{name} and as much again", data + data)
            yield _of(f"{name} that ends in zeros", data[: len(data) // 2] + bytes(len(data) // 2))
            yield from (_of(f"{name} damaged {seed}", _damaged(data, seed)) for seed in range(20))
    png, jpeg = file_of(noise()), file_of(noise(), "JPEG")
    for name, chunk in PNG_CHUNKS.items():
        yield _of(f"png with {name}", png[:33] + chunk + png[33:])
    for name, segment in JPEG_SEGMENTS.items():
        yield _of(f"jpeg with {name}", jpeg[:2] + segment + jpeg[2:])
    for name, data in OTHER_KINDS.items():
        yield _of(name, data)
    for name, make in BOMBS.items():
        yield Case(name, _open_file, heavy=True, prepare=lambda folder, make=make: _file(folder).write_bytes(make()))


def _file(folder: Path) -> Path:
    return folder / "p"


def _open_file(folder: Path) -> None:
    open_image(ImagePart(_file(folder).read_bytes(), "p"))


def _of(name: str, data: bytes) -> Case:
    def attempt(_: Path) -> None:
        open_image(ImagePart(data, "p"))

    def attempt_in_a_worker(_: Path) -> None:
        with closing(Decoder(1)) as decoder:
            decoder.decode(ImagePart(data, "p"), ImageProcessorConfig())

    # libtiff itself writes about damaged fax data to stderr, which in a worker is nobody's.
    return Case(name, attempt_in_a_worker if name.startswith("tiff") else attempt)


def _damaged(data: bytes, seed: int) -> bytes:
    chosen = random.Random(seed)
    changed = bytearray(data)
    for _ in range(chosen.choice((1, 3, 20))):
        changed[chosen.randrange(min(len(changed), chosen.choice((64, len(changed)))))] = chosen.randrange(256)
    return bytes(changed)
