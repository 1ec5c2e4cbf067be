"""Pixel values against those of Meta's own image transform (tests/golden/README.md)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mllama_cli.processing.image_processor import ImageTiles, MllamaImageProcessor
from mllama_cli.processing.images import open_image
from mllama_cli.processing.sources import read_image

GOLDEN = Path(__file__).parents[1] / "golden" / "meta-tiny"
CASES = json.loads((GOLDEN / "cases.json").read_text())["cases"]
IMAGES = [image for case in CASES.values() for image in case["images"]]
PNGS = [image for image in IMAGES if image["folder"] != "photos"]
PHOTOS = [image for image in IMAGES if image["folder"] == "photos"]


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "cases.safetensors")


def process(path: Path, image: dict) -> ImageTiles:
    part = read_image(path)
    assert part.digest == image["sha256"]
    [tiles] = MllamaImageProcessor.from_pretrained(GOLDEN)([open_image(part)])
    assert (tiles.num_tiles, tiles.aspect_ratio_id) == (image["num_tiles"], image["aspect_ratio_id"])
    return tiles


def key(image: dict) -> str:
    return image["pixel_values"]


@pytest.mark.parametrize("image", PNGS, ids=key)
def test_a_png_gives_the_reference_pixels_bit_for_bit(image: dict, expected: dict[str, torch.Tensor]) -> None:
    tiles = process(GOLDEN / image["file"], image)
    assert torch.equal(tiles.pixel_values, expected[key(image)])


@pytest.mark.parametrize("image", PHOTOS, ids=key)
def test_a_photo_gives_the_reference_pixels(image: dict, expected: dict[str, torch.Tensor], shared: Path) -> None:
    tiles = process(shared / "photos" / image["file"], image)
    # The README allows a JPEG decoder a step or two of 1/255, which are 0.015 each after normalisation.
    torch.testing.assert_close(tiles.pixel_values, expected[key(image)], rtol=0, atol=0.031)
    assert (tiles.pixel_values - expected[key(image)]).abs().mean() < 1e-3


def test_the_cases_use_every_canvas() -> None:
    assert {image["aspect_ratio_id"] for image in IMAGES} == set(range(1, 9))
