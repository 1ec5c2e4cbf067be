"""Small files that describe large pictures: refused by their headers, or reduced, and never over the budget."""

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ImageError
from mllama_cli.processing import memory_budget
from mllama_cli.processing.color import to_rgb
from mllama_cli.processing.images import open_image
from mllama_cli.processing.prepared import prepare_image
from tests.processing.pictures import ICON_HEAD, SIDE, file_of, j2k, noise, png_chunk, raw_png, raw_png_of, tiff

PEAK = """
import sys
from pathlib import Path
from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ImageError
from mllama_cli.processing.images import open_image
try:
    open_image(ImagePart(Path(sys.argv[1]).read_bytes(), "p"))
except ImageError as error:
    print(error.message, file=sys.stderr)
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])  # ru_maxrss counts the parent before exec
"""


@pytest.mark.parametrize(
    "data",
    [
        raw_png(1, 178_000_000, 8, 6, b""),
        raw_png(178_000_000, 1, 16, 6, b""),
        tiff(SIDE, SIDE, 32, 1, {278: SIDE}),
        tiff(16, 16, 32, 1, {322: 65536, 323: 65536, 324: 8, 325: 8}),
        j2k(SIDE, SIDE, block=0),
        j2k(30_000, 30_000),
        j2k(SIDE, SIDE, tile=16),
        b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 \0\0\0\0jp2 \0\0\0\x2djp2h\0\0\0\x16ihdr"
        + struct.pack(">IIHBBBB", 8, 8, 1, 7, 7, 0, 0)
        + b"\0\0\0\x0fcolr\1\0\0\0\0\0\x11\0\0\0\0jp2c"
        + j2k(30_000, 30_000),
        b"qoif" + struct.pack(">IIBB", SIDE, SIDE, 4, 0) + b"\xfd" * 3000 + bytes(7) + b"\1",
        b"P6 9000 9000 1023\n" + bytes(100),
        b"P3 9000 9000 255\n" + b"1 " * 100,
    ],
    ids=["tall", "wide", "floats", "tile", "blocks", "huge", "tiles", "lying jp2", "qoi", "ppm 10 bits", "plain ppm"],
)
def test_what_would_exceed_the_budget_is_refused_before_decoding(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("pixels were decoded"))
    with pytest.raises(ImageError, match=r"p is (too large: |damaged)"):
        open_image(ImagePart(data, "p"))


BUDGETS = {  # bytes a pixel that let a half or a quarter pass, but not the whole
    ("JPEG", "RGB"): 1.5, ("JPEG", "L"): 0.5, ("JPEG2000", "RGB"): 9, ("PNG", "RGBA"): 5.5, ("PNG", "L"): 2.5,
    ("TIFF", "RGBA"): 5.5, ("PNG", "LA"): 5.5,
}  # fmt: skip


@pytest.mark.parametrize(("format", "mode"), BUDGETS)
def test_a_very_large_picture_is_reduced_and_keeps_its_size(
    format: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.linear_gradient("L").resize((1600, 1100)).convert(mode)
    options = {"compression": "tiff_deflate"} if format == "TIFF" else {}
    part = ImagePart(file_of(image, format, **options), "p")
    whole = open_image(part)
    assert whole.size == image.size
    fixed = 64_000_000 + 48 * 1600 + 2 * len(part.data) + 200_000
    monkeypatch.setattr(memory_budget, "MAX_PICTURE_BYTES", fixed + int(BUDGETS[format, mode] * 1600 * 1100))
    reduced = open_image(part)
    assert reduced.size in [(800, 550), (400, 275)]
    prepared = prepare_image(part, ImageProcessorConfig(tile_size=56))
    assert (prepared.width, prepared.height) == image.size
    near = np.asarray(whole.resize(reduced.size, Image.Resampling.BOX)).astype(int)
    assert np.abs(near - np.asarray(reduced)).mean() < 3


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "La", "RGBa"]
)
@pytest.mark.parametrize("size", [(24, 16), (7, 129), (129, 7)])
def test_conversion_in_bands_equals_that_of_the_whole(
    mode: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = noise(*size, mode)
    whole, halved = to_rgb(image), to_rgb(image).reduce(2)
    monkeypatch.setattr("mllama_cli.processing.color._BAND_PIXELS", 50)
    assert to_rgb(image).tobytes() == whole.tobytes()
    assert to_rgb(image, 2).tobytes() == halved.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint16])
@pytest.mark.parametrize("scale", [1, 200, 60_000, 1e6])
def test_deep_samples_are_scaled_alike_in_all_bands(dtype: type, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.random.default_rng(0).random((40, 30)) * min(scale, 65_535 if dtype is np.uint16 else scale)
    image = Image.fromarray(samples.astype(dtype))
    whole = to_rgb(image).tobytes()
    monkeypatch.setattr("mllama_cli.processing.color._BAND_PIXELS", 50)
    assert to_rgb(image).tobytes() == whole


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "data",
    [
        lambda: raw_png_of(SIDE, SIDE, 8, 6),
        lambda: raw_png_of(SIDE, SIDE, 16, 0, png_chunk(b"tRNS", b"\0\0")),
        lambda: ICON_HEAD + raw_png_of(9000, 9000, 8, 6),
        lambda: j2k(13_000, 13_000, 3),
        lambda: file_of(Image.new("RGB", (9000, 9000)), "JPEG", progressive=True),
    ],
    ids=["rgba", "deep grey", "icon", "jpeg 2000", "progressive"],
)
def test_the_worst_pictures_take_less_than_a_gigabyte(data: object, tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(data())  # type: ignore[operator]
    command = [sys.executable, "-c", PEAK, str(tmp_path / "p")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1_000_000
