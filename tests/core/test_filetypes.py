"""The table of image formats agrees with what Pillow writes and reads."""

import importlib
from io import BytesIO

import pytest
from PIL import Image

from mllama_cli.core.filetypes import (
    FORMAT_NAMES,
    IMAGE_FORMATS,
    IMAGE_SUFFIXES,
    ImageFormat,
    image_format,
    image_suffix,
    media_type,
)


@pytest.mark.parametrize("row", IMAGE_FORMATS, ids=lambda row: row.name)
def test_a_file_is_known_by_its_first_bytes(row: ImageFormat) -> None:
    file = BytesIO()
    image = Image.new("RGB", (32, 32), "red")
    if row.name == "HEIF":  # the same files under a generic brand
        file.write(b"\0\0\0\x18ftypmif1")
    elif row.name == "HEIC":
        pillow_heif = pytest.importorskip("pillow_heif", reason="the heic extra is not installed")
        pillow_heif.from_pillow(image).save(file)
    else:
        importlib.import_module(f"PIL.{row.plugin}ImagePlugin")
        image.save(file, row.name.upper())
    assert image_format(file.getvalue()) is row


@pytest.mark.parametrize(
    ("name", "type_", "suffix"),
    [("JPEG", "image/jpeg", ".jpg"), ("PNG", "image/png", ".png"), ("TIFF", "image/tiff", ".tif")],
)
def test_media_types_and_suffixes(name: str, type_: str, suffix: str) -> None:
    file = BytesIO()
    Image.new("RGB", (8, 8)).save(file, name)
    assert (media_type(file.getvalue()), image_suffix(file.getvalue())) == (type_, suffix)


def test_other_bytes_have_no_format() -> None:
    assert (media_type(b"?"), image_suffix(b"")) == ("application/octet-stream", ".img")


def test_one_list_of_suffixes_has_all_that_is_decoded() -> None:
    assert {
        *(".jpg", ".jpeg", ".jfif", ".jpe", ".jfi", ".jif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif"),
        *(".tiff", ".avif", ".avifs", ".ico", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".qoi"),
        *(".heic", ".hif", ".heif"),
    } <= set(IMAGE_SUFFIXES)
    assert FORMAT_NAMES == "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC or HEIF"
