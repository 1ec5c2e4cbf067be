"""Files of every format and mode to RGB, and a clear error for every bad file."""

import struct
import sys
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile, ImageOps

from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ImageError
from mllama_cli.processing.color import to_rgb
from mllama_cli.processing.images import encode_image, open_image
from tests.processing.pictures import file_of, noise, png_chunk, raw_png

LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "BMP": {}, "TIFF": {}, "JPEG2000": {}, "PPM": {}, "QOI": {}}
LOSSY = {"JPEG": {"quality": 95}, "WEBP": {"quality": 95}, "AVIF": {"quality": 95}, "GIF": {}}
GREY_16 = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)


def opened(data: bytes, name: str = "picture") -> Image.Image:
    image = open_image(ImagePart(data, name))
    assert image.mode == "RGB"
    return image


def pixels(image: Image.Image) -> list:
    return np.asarray(image).tolist()


def reds(data: bytes) -> list[int]:
    return np.asarray(opened(data))[0, :, 0].tolist()


def smooth() -> Image.Image:
    return Image.linear_gradient("L").resize((64, 48)).convert("RGB")


# Formats


@pytest.mark.parametrize("format", LOSSLESS)
def test_lossless_formats_keep_every_pixel(format: str) -> None:
    image = noise()
    assert pixels(opened(file_of(image, format, **LOSSLESS[format]))) == pixels(image)


@pytest.mark.parametrize("format", LOSSY)
def test_lossy_formats_come_near(format: str) -> None:
    image = smooth()
    result = opened(file_of(image, format, **LOSSY[format]))
    assert result.size == image.size
    assert np.abs(np.asarray(result).astype(int) - np.asarray(image)).max() <= 6


def test_heic_opens_with_pillow_heif() -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="the heic extra is not installed")
    buffer = BytesIO()
    pillow_heif.from_pillow(smooth()).save(buffer, quality=95)
    result = opened(buffer.getvalue())
    assert np.abs(np.asarray(result).astype(int) - np.asarray(smooth())).max() <= 6


def test_heic_without_pillow_heif_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"a\.heic is a HEIC picture") as caught:
        opened(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a.heic")
    assert 'pip install "mllama-cli[heic]"' in caught.value.hint


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_a_moving_picture_is_taken(format: str) -> None:
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    options = {"lossless": True} if format == "WEBP" else {}
    data = file_of(first, format, save_all=True, append_images=[second], **options)
    assert Image.open(BytesIO(data)).n_frames == 2
    assert opened(data).getcolors() == [(64, (255, 0, 0))]


# Orientation


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations_are_turned_upright(format: str, orientation: int) -> None:
    undo = {
        1: lambda x: x,
        2: ImageOps.mirror,
        3: lambda x: x.rotate(180),
        4: ImageOps.flip,
        5: lambda x: x.transpose(Image.Transpose.TRANSPOSE),
        6: lambda x: x.rotate(90, expand=True),
        7: lambda x: x.transpose(Image.Transpose.TRANSVERSE),
        8: lambda x: x.rotate(-90, expand=True),
    }
    upright = Image.new("RGB", (32, 16), "black")
    upright.paste("red", (0, 0, 16, 8))
    upright.paste("lime", (16, 0, 32, 8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if format == "WEBP" else {"subsampling": 0} if format == "JPEG" else {}
    result = opened(file_of(undo[orientation](upright), format, exif=exif, **options))
    assert result.size == (32, 16)
    assert np.abs(np.asarray(result).astype(int) - np.asarray(upright)).mean() < 8  # any other orientation: 40 or more


def test_sixteen_bit_grey_is_turned_too() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    result = opened(file_of(Image.fromarray(GREY_16), exif=exif))
    assert np.asarray(result)[:, 0, 0].tolist() == [0, 0, 1, 128, 255]


def test_damaged_exif_does_not_cost_the_picture() -> None:
    data = file_of(smooth(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert opened(data).size == (64, 48)


# Modes


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    image = Image.fromarray(GREY_16)
    for format in ("PNG", "TIFF", "PPM", "JPEG2000"):
        assert reds(file_of(image, format)) == [0, 0, 1, 128, 255], format
    assert reds(file_of(image, "TIFF", tiffinfo={262: 0})) == [255, 255, 254, 127, 0]  # white is zero


def test_a_dark_sixteen_bit_netpbm_picture_stays_dark() -> None:
    assert reds(file_of(Image.fromarray(GREY_16[:, :2]), "PPM")) == [0, 0]


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_both_byte_orders_of_sixteen_bits(mode: str) -> None:
    raw = GREY_16.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
    assert np.asarray(to_rgb(Image.frombytes(mode, (5, 1), raw)))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.array([[0, 128, 255]], np.int32), [0, 128, 255]),
        (np.array([[0, 32768, 65535]], np.int32), [0, 128, 255]),
        (np.array([[-10, 0, 10]], np.int32), [0, 128, 255]),
        (np.array([[0, 2**30, 2**31 - 1]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.25, 1]], np.float32), [0, 64, 255]),
        (np.array([[0, 99.9, 255]], np.float32), [0, 99, 255]),
        (np.array([[0, 25600, 65535]], np.float32), [0, 100, 255]),
        (np.array([[np.nan, 0, 1]], np.float32), [0, 0, 255]),
        (np.array([[-np.inf, 0, np.inf]], np.float32), [0, 0, 0]),
        (np.array([[1e30, 1e30]], np.float32), [0, 0]),
    ],
)
def test_deep_grey_of_unknown_range(samples: np.ndarray, expected: list[int]) -> None:
    assert reds(file_of(Image.fromarray(samples), "TIFF")) == expected


def test_transparency_goes_on_white() -> None:
    half_red = Image.new("RGBA", (2, 2), (255, 0, 0, 128))
    assert opened(file_of(half_red)).getpixel((0, 0)) == (255, 127, 127)
    assert opened(file_of(Image.new("LA", (2, 2), (0, 0)))).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert pixels(opened(file_of(palette, transparency=0))) == [[[255, 255, 255], [40, 50, 60]]]
    assert pixels(opened(file_of(palette, transparency=b"\xff\x00"))) == [[[10, 20, 30], [255, 255, 255]]]
    assert pixels(opened(file_of(palette, "GIF", transparency=0))) == [[[255, 255, 255], [40, 50, 60]]]


def test_a_transparent_sixteen_bit_value_goes_on_white() -> None:
    assert reds(file_of(Image.fromarray(GREY_16), transparency=256)) == [0, 0, 255, 128, 255]


def test_sixteen_bit_colour() -> None:
    rows = b"\0" + struct.pack(">6H", 65535, 0, 257, 0x1234, 0x5678, 0x9ABC)
    assert pixels(opened(raw_png(2, 1, 16, 2, rows))) == [[[255, 0, 1], [0x12, 0x56, 0x9A]]]
    key = png_chunk(b"tRNS", struct.pack(">3H", 0x1234, 0x5678, 0x9ABC))
    assert pixels(opened(raw_png(2, 1, 16, 2, rows, key))) == [[[255, 0, 1], [255, 255, 255]]]


@pytest.mark.parametrize(("mode", "color"), [("La", (64, 128)), ("RGBa", (64, 64, 64, 128))])
def test_premultiplied_alpha_goes_on_white(mode: str, color: tuple[int, ...]) -> None:
    # 64 of 128 is 127 or 128 unmultiplied; half of that on white is 191.
    assert to_rgb(Image.new(mode, (1, 1), color)).getpixel((0, 0)) in [(191,) * 3, (192,) * 3, (190,) * 3]


def test_the_a_of_lab_is_a_colour() -> None:
    # L 54.3 %, a 81, b 70 is sRGB red.
    red = opened(file_of(Image.new("LAB", (1, 1), (138, 128 + 81, 128 + 70)), "TIFF")).getpixel((0, 0))
    assert np.abs(np.array(red) - (255, 0, 0)).max() <= 6


def test_cmyk_also_inverted_as_adobe_writes_it() -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    for format in ("TIFF", "JPEG"):
        data = file_of(cyan, format)
        assert np.abs(np.array(opened(data).getpixel((8, 8))) - (0, 255, 255)).max() <= 3
        assert Image.open(BytesIO(data)).mode == "CMYK"
    # The same samples under an Adobe marker mean the inverse: Pillow writes the marker, and inverts, itself.
    assert b"Adobe" in file_of(cyan, "JPEG")


def test_bits_and_greys() -> None:
    for mode in ("1", "L", "P", "CMYK", "RGBA"):
        image = noise(mode=mode)
        white = Image.new("RGBA", image.size, "white")
        expected = Image.alpha_composite(white, image).convert("RGB") if mode == "RGBA" else image.convert("RGB")
        assert pixels(opened(file_of(image, "TIFF" if mode == "CMYK" else "PNG"))) == pixels(expected)


# Bad files


@pytest.mark.parametrize(
    ("data", "what", "hint"),
    [
        (b"<!DOCTYPE html><html><body>404", "a web page", "browser"),
        (b"\n  <html lang=en>", "a web page", "browser"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing", "Render it"),
        (b"<svg viewBox='0 0 1 1'/>", "an SVG drawing", "Render it"),
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF document", "pdftoppm"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "a PostScript document", "PNG"),
        (b"shopping list:\n- \xc3\xa4pfel\n", "text", "Give a picture"),
        (b"\xef\xbb\xbfwith a byte order mark", "text", "Give a picture"),
        ("UTF-16".encode("utf-16"), "text", "Give a picture"),
        (b'{"error": "not found"}', "JSON text", "Give a picture"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer", "git lfs pull"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "a video", "ffmpeg"),
        (b"PK\x03\x04\x14\0\x06\0", "a ZIP archive", "Give a picture"),
        (b"8BPS\0\1\0\0", "a Photoshop file", "Convert"),
        (("ä" * 3000).encode()[:4097], "text", "Give a picture"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, what: str, hint: str) -> None:
    with pytest.raises(ImageError) as caught:
        opened(data, "notes.txt")
    assert caught.value.message.startswith(f"notes.txt is not a picture: it looks like {what}")
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "data", [b"\x00\x01\x02\x03" * 10, b"P\0", b"(\0\0\0" * 20, b"\xff\xfe\xfd" * 9, b"\x80", bytes(range(256))]
)
def test_unknown_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="x is not a picture in a format that mllama reads"):
        opened(data, "x")


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(ImageError, match="x is empty"):
        opened(b"", "x")


@pytest.mark.parametrize(
    ("format", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("GIF", {}), ("BMP", {}), ("AVIF", {})],
)
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.95])
def test_a_truncated_file_is_cut_short(format: str, options: dict, keep: float) -> None:
    data = file_of(noise(120, 90), format, **options)
    assert opened(data).size == (120, 90)
    with pytest.raises(ImageError, match=r"p\.x is (cut short|damaged)") as caught:
        opened(data[: int(len(data) * keep)], "p.x")
    if format not in ("AVIF", "GIF"):  # these sometimes cannot tell
        assert "cut short" in caught.value.message
    assert caught.value.hint


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO"])
def test_no_damage_gives_another_error(format: str) -> None:
    """Every file with bytes overwritten, or cut, opens or raises ImageError: no other exception gets out."""
    data = file_of(noise(40, 30), format)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(40):
        damaged = bytearray(data[: rng.integers(1, len(data) + 1)])
        for place in rng.integers(0, min(len(damaged), 200), 4):
            damaged[place] = rng.integers(256)
        try:
            opened(bytes(damaged))
        except ImageError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize("size", [(20_000, 20_000), (2**31 - 1, 2**31 - 1), (1, 178_956_971)])
def test_a_bomb_is_refused_by_its_header(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("pixels were decoded"))
    with pytest.raises(ImageError, match=rf"bomb\.png is too large: {size[0]} x {size[1]}"):
        opened(raw_png(*size, 8, 2, b"\0"), "bomb.png")


def test_a_gif_bomb_is_refused_by_its_header() -> None:
    data = bytearray(file_of(noise(4, 4), "GIF"))
    data[6:10] = b"\xff\xff\xff\xff"
    with pytest.raises(ImageError, match="too large: 65535 x 65535"):
        opened(bytes(data))


def test_a_picture_without_pixels_is_refused() -> None:
    data = bytearray(file_of(noise(4, 4), "BMP"))
    data[18:22] = b"\0\0\0\0"
    with pytest.raises(ImageError, match=r"no pixels \(0 x 4\)|damaged"):
        opened(bytes(data))
    with pytest.raises(ImageError, match=r"no pixels \(0 x 5\)"):
        encode_image(Image.new("RGB", (0, 5)))


def test_one_pixel_is_a_picture() -> None:
    assert pixels(opened(file_of(Image.new("RGB", (1, 1), (1, 2, 3))))) == [[[1, 2, 3]]]


def test_postscript_never_reaches_ghostscript(tmp_path: Path) -> None:
    eps = file_of(noise(4, 4), "EPS")
    assert Image.open(BytesIO(eps)).format == "EPS"
    with pytest.raises(ImageError, match="PostScript"):
        opened(eps)


# From PIL images


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "La", "RGBa", "LAB"]
)
def test_encoding_keeps_what_the_model_sees(mode: str) -> None:
    image = noise(mode=mode)
    part = encode_image(image, "mine")
    assert part.name == "mine"
    assert pixels(open_image(part)) == pixels(to_rgb(image))


def test_encoding_applies_the_orientation_and_leaves_the_image_alone() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = file_of(smooth(), "JPEG", exif=exif)
    image = Image.open(BytesIO(data))
    part = encode_image(image)
    assert pixels(open_image(part)) == pixels(opened(data))
    assert image.size == (64, 48)
    assert image.getexif()[ExifTags.Base.Orientation] == 6
