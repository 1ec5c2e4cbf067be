"""What a file carries besides its pixels never costs the picture, nor says a word."""

import warnings
from collections.abc import Iterator
from io import BytesIO

import numpy as np
import pytest
from PIL import ExifTags, Image

from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ImageError
from mllama_cli.processing.images import open_image
from mllama_cli.processing.side_data import PNG_SIGNATURE
from tests.processing.pictures import JPEG_SEGMENTS, PNG_CHUNKS, file_of, noise, png_chunk


@pytest.fixture(autouse=True)
def _no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(open_image(ImagePart(data, "p.x")))


def drawing() -> Image.Image:
    return Image.linear_gradient("L").resize((160, 120)).convert("RGB")


@pytest.mark.parametrize("chunk", PNG_CHUNKS.values(), ids=PNG_CHUNKS)
@pytest.mark.parametrize("after", ["header", "pixels"])
def test_a_png_opens_whatever_its_side_chunks(chunk: bytes, after: str) -> None:
    data = file_of(noise())
    split = 33 if after == "header" else len(data) - 12
    assert np.array_equal(pixels(data[:split] + chunk + data[split:]), noise())


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT"])
def test_damaged_pixels_of_a_png_are_still_refused(kind: bytes) -> None:
    data = bytearray(file_of(noise()))
    data[data.index(kind) + 6] ^= 0xFF
    with pytest.raises(ImageError, match=r"p\.x is (damaged|cut short)"):
        pixels(bytes(data))


def test_a_png_keeps_palette_transparency_and_orientation() -> None:
    palette = Image.new("P", (4, 2), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert pixels(file_of(palette, transparency=0)).tolist() == [[[255] * 3] * 4] * 2
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = file_of(noise(24, 16), exif=exif)
    assert open_image(ImagePart(data, "p")).size == (16, 24)
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4])
    late = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    assert open_image(ImagePart(late, "p")).size == (16, 24), "also behind the pixels"


@pytest.mark.parametrize("length", [8, 9, 11, 20, 40])
def test_a_png_that_breaks_off_in_its_header_is_an_error(length: int) -> None:
    with pytest.raises(ImageError):
        pixels((PNG_SIGNATURE + png_chunk(b"tEXt", b"a\0b") + file_of(noise())[8:])[:length])


@pytest.mark.parametrize("extra", JPEG_SEGMENTS.values(), ids=JPEG_SEGMENTS)
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_opens_whatever_its_segments(extra: bytes, progressive: bool) -> None:
    data = file_of(drawing(), "JPEG", progressive=progressive)
    assert np.array_equal(pixels(data[:2] + extra + data[2:]), pixels(data))
    assert np.array_equal(pixels(data[:2] + extra + data[20:]), pixels(data)), "and without its JFIF header"


def test_a_photo_of_several_images_gives_the_first() -> None:
    first = drawing()
    data = file_of(first, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert Image.open(BytesIO(data)).format == "MPO"
    assert open_image(ImagePart(data, "p.mpo")).size == first.size
    assert open_image(ImagePart(data + b"\xff\xda" * 500, "a film behind the photo")).size == first.size


KINDS = {"sequential": {}, "progressive": {"progressive": True}, "with restarts": {"restart_marker_blocks": 3}}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_without_its_end_marker_opens_and_half_of_one_does_not(options: dict, mode: str) -> None:
    image = noise(320, 240).resize((640, 480), Image.Resampling.BICUBIC).convert(mode)
    data = file_of(image, "JPEG", **options)
    assert data.endswith(b"\xff\xd9")
    for end in (b"", b"\xff"):
        assert np.array_equal(pixels(data[:-2] + end), pixels(data))
    for keep in (0.3, 0.5, 0.9):
        with pytest.raises(ImageError, match=r"p\.x is (cut short|damaged)"):
            pixels(data[: int(len(data) * keep)])


@pytest.mark.parametrize("scans", [101, 3000])
def test_a_jpeg_of_absurdly_many_scans_is_refused_at_once(scans: int) -> None:
    data = file_of(drawing(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match=r"p\.x is a JPEG of \d+ scans"):
        pixels(data[:-2] + data[last:-2] * scans + b"\xff\xd9")
    assert pixels(data[:-2] + data[last:-2] * 20 + b"\xff\xd9").any(), "a few more are harmless"
