"""A few sound pictures of each format that is read."""

from io import BytesIO

import numpy as np
from PIL import Image

from tests.processing.pictures import file_of, noise


def _heic(image: Image.Image) -> list[bytes]:
    try:
        import pillow_heif
    except ImportError:  # the heic extra is not installed
        return []
    buffer = BytesIO()
    pillow_heif.from_pillow(image).save(buffer)
    return [buffer.getvalue()]


EXIF = Image.Exif()
EXIF[0x0112] = 6
SMALL = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
FRAMES = {"save_all": True, "append_images": [noise()]}
SAMPLES: dict[str, list[bytes]] = {
    "JPEG": [file_of(SMALL, "JPEG", exif=EXIF), file_of(noise(), "JPEG", progressive=True, restart_marker_blocks=1),
             file_of(noise(mode="CMYK"), "JPEG"), file_of(noise(), "MPO", **FRAMES)],
    "PNG": [file_of(noise(mode=mode), exif=EXIF) for mode in ("RGB", "RGBA", "P", "LA", "1")]
           + [file_of(Image.fromarray(np.zeros((3, 3), np.uint16)), transparency=1), file_of(noise(), **FRAMES)],
    "WEBP": [file_of(noise(), "WEBP"), file_of(noise(mode="RGBA"), "WEBP", lossless=True, exif=EXIF),
             file_of(noise(), "WEBP", **FRAMES)],
    "GIF": [file_of(noise(mode="P"), "GIF"), file_of(noise(), "GIF", **FRAMES)],
    "BMP": [file_of(noise(mode=mode), "BMP") for mode in ("RGB", "P", "1")],
    "TIFF": [file_of(noise(mode=mode), "TIFF", exif=EXIF, compression=compression)
             for mode, compression in (("RGB", "raw"), ("RGBA", "tiff_deflate"), ("1", "group4"), ("L", "tiff_lzw"))],
    "AVIF": [file_of(SMALL, "AVIF"), file_of(noise(mode="RGBA"), "AVIF")],
    "ICO": [file_of(noise(16, 16), "ICO", sizes=[(16, 16)]), file_of(noise(16, 16), "ICO", bitmap_format="bmp")],
    "JPEG2000": [file_of(noise(), "JPEG2000"), file_of(noise(), "JPEG2000", no_jp2=True, tile_size=(8, 8))],
    "PPM": [file_of(noise(), "PPM"), b"P3 2 1 255\n1 2 3 4 5 6\n", b"P1 2 2\n1 0 0 1\n", b"P4 9 2\n" + bytes(4)],
    "QOI": [file_of(noise(), "QOI"), file_of(noise(mode="RGBA"), "QOI")],
    "HEIC": _heic(SMALL),
}  # fmt: skip
