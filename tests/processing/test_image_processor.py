"""Tiles against transformers' PIL image processor, bit for bit."""

import json
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mllama_cli.core.config import ASPECT_RATIOS, ImageProcessorConfig
from mllama_cli.core.errors import CheckpointError, ImageError
from mllama_cli.processing.canvas import choose_canvas, fit_to_canvas, supported_aspect_ratios
from mllama_cli.processing.color import to_rgb
from mllama_cli.processing.image_processor import MllamaImageProcessor, look_up
from tests.processing.pictures import noise

peer = pytest.importorskip("transformers.models.mllama.image_processing_pil_mllama")

MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"]


@lru_cache(maxsize=32)
def processors(tile_size: int, max_tiles: int):
    config = ImageProcessorConfig(tile_size=tile_size, max_image_tiles=max_tiles)
    theirs = peer.MllamaImageProcessorPil(
        size={"height": tile_size, "width": tile_size},
        max_image_tiles=max_tiles,
        image_mean=list(config.image_mean),
        image_std=list(config.image_std),
        rescale_factor=config.rescale_factor,
    )
    return MllamaImageProcessor(config), theirs


def assert_equal_to_transformers(image: Image.Image, tile_size: int, max_tiles: int) -> None:
    ours, theirs = processors(tile_size, max_tiles)
    [tiles] = ours(image)
    expected = theirs(image, return_tensors="pt")
    assert tiles.num_tiles == expected["num_tiles"][0][0]
    assert tiles.aspect_ratio_id == expected["aspect_ratio_ids"][0, 0]
    assert tiles.pixel_values.dtype == torch.float32
    assert tiles.pixel_values.is_contiguous()
    padded = torch.zeros_like(expected["pixel_values"][0, 0])
    padded[: tiles.num_tiles] = tiles.pixel_values
    assert torch.equal(padded, expected["pixel_values"][0, 0])


sides = st.one_of(st.integers(1, 4000), st.sampled_from([1, 2, 55, 56, 57, 112, 224, 448, 559, 560, 561, 1120, 2240]))
settings_of_tiles = {"tile_size": st.sampled_from([56, 112, 448, 560]), "max_tiles": st.integers(1, 4)}


@settings(max_examples=400, deadline=None)
@given(width=sides, height=sides, **settings_of_tiles)
@example(width=4000, height=3, tile_size=560, max_tiles=4)
@example(width=1, height=4000, tile_size=448, max_tiles=4)
def test_the_canvas_and_the_resized_size_equal_transformers(width: int, height: int, tile_size: int, max_tiles: int):
    rows, columns = choose_canvas((height, width), supported_aspect_ratios(max_tiles), tile_size)
    canvas = (rows * tile_size, columns * tile_size)
    assert canvas == peer.get_optimal_tiled_canvas(height, width, max_tiles, tile_size)
    size = fit_to_canvas((height, width), canvas, tile_size)
    assert size == peer.get_image_size_fit_to_canvas(height, width, *canvas, tile_size)
    assert min(size) >= 1


# Few pixels a picture, as every size is resized and compared whole; long panoramas and specks included.
small_sizes = st.one_of(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.tuples(st.integers(1, 4000), st.integers(1, 4)),
    st.tuples(st.integers(1, 4), st.integers(1, 4000)),
    st.tuples(st.integers(500, 2000), st.integers(20, 60)),
)


@settings(max_examples=60, deadline=None)
@given(size=small_sizes, **settings_of_tiles)
@example(size=(1, 1), tile_size=560, max_tiles=4)
@example(size=(4000, 3), tile_size=560, max_tiles=4)
@example(size=(3, 4000), tile_size=448, max_tiles=4)
@example(size=(1200, 900), tile_size=560, max_tiles=4)
@example(size=(1120, 1120), tile_size=560, max_tiles=4)
def test_pixels_equal_transformers_bit_for_bit(size: tuple[int, int], tile_size: int, max_tiles: int) -> None:
    assert_equal_to_transformers(noise(*size), tile_size, max_tiles)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_equals_transformers_bit_for_bit(mode: str) -> None:
    assert_equal_to_transformers(noise(130, 90, mode), 56, 4)


@pytest.mark.parametrize(
    ("mode", "transparent"),
    [("1", 0), ("L", 7), ("P", 3), ("P", bytes(range(0, 256, 2))), ("RGB", (0, 0, 0))],
)
def test_a_named_transparent_colour_equals_transformers(mode: str, transparent: object) -> None:
    image = noise(40, 30, mode)
    if mode == "RGB":
        image.paste((0, 0, 0), (5, 5, 20, 20))
    opaque = to_rgb(image)
    image.info["transparency"] = transparent
    assert to_rgb(image).tobytes() != opaque.tobytes()
    assert_equal_to_transformers(image, 56, 4)


def test_other_means_and_scales_equal_transformers() -> None:
    config = ImageProcessorConfig(56, 4, (0.5, 0.4, 0.3), (0.1, 0.7, 0.9), 0.00390625)
    theirs = peer.MllamaImageProcessorPil(
        size={"height": 56, "width": 56},
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.1, 0.7, 0.9],
        rescale_factor=0.00390625,
    )
    image = noise(100, 50)
    [tiles] = MllamaImageProcessor(config)(image)
    expected = theirs(image, return_tensors="pt")["pixel_values"][0, 0, : tiles.num_tiles]
    assert torch.equal(tiles.pixel_values, expected)


def test_bytes_looked_up_on_a_device_equal_those_of_the_host() -> None:
    config = ImageProcessorConfig(tile_size=56, image_mean=(0.1, 0.5, 0.7), image_std=(0.2, 0.3, 0.4))
    (tiles,) = MllamaImageProcessor(config)(noise(300, 200))
    assert tiles.pixels.dtype == torch.uint8
    assert tiles.values is not None
    assert torch.equal(look_up(tiles.pixels, tiles.values), tiles.pixel_values)


def test_aspect_ratios_are_in_the_order_of_their_ids() -> None:
    assert supported_aspect_ratios(4) == ASPECT_RATIOS
    for count in range(1, 10):
        assert list(supported_aspect_ratios(count)) == peer.get_all_supported_aspect_ratios(count)


def test_several_images_keep_their_order_and_own_number_of_tiles() -> None:
    processor = MllamaImageProcessor(ImageProcessorConfig(tile_size=56))
    wide, small = noise(300, 40), noise(20, 20)
    both = processor([wide, small])
    assert [tiles.num_tiles for tiles in both] == [4, 1]
    assert [tiles.aspect_ratio_id for tiles in both] == [4, 1]
    assert torch.equal(both[1].pixel_values, processor(small)[0].pixel_values)


def test_padding_inside_a_tile_is_black_before_normalisation() -> None:
    config = ImageProcessorConfig(tile_size=56)
    [tiles] = MllamaImageProcessor(config)(Image.new("RGB", (56, 28), "white"))
    assert tiles.size == (28, 56)
    below = tiles.pixel_values[0, :, 28:]
    expected = -torch.tensor(config.image_mean) / torch.tensor(config.image_std)
    assert torch.equal(below, expected[:, None, None].expand(3, 28, 56))


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match="no pixels"):
        MllamaImageProcessor(ImageProcessorConfig())(Image.new("RGB", (0, 5)))


def test_what_transformers_saves_is_read(tmp_path: Path) -> None:
    theirs = peer.MllamaImageProcessorPil(size={"height": 112, "width": 112}, max_image_tiles=2, image_mean=[0.1] * 3)
    theirs.save_pretrained(tmp_path)
    config = MllamaImageProcessor.from_pretrained(tmp_path).config
    assert (config.tile_size, config.max_image_tiles, config.image_mean) == (112, 2, (0.1, 0.1, 0.1))


def test_the_joint_processor_config_is_read(tmp_path: Path) -> None:
    joint = {"processor_class": "MllamaProcessor", "image_processor": {"size": {"height": 448, "width": 448}}}
    (tmp_path / "processor_config.json").write_text(json.dumps(joint))
    assert MllamaImageProcessor.from_pretrained(tmp_path).config.tile_size == 448


def test_a_missing_config_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config\.json"):
        MllamaImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"image_mean": [0.5]}',
        '{"image_mean": ["a", "b", "c"]}',
        '{"image_mean": 0.5}',
        '{"image_std": [0, 1, 1]}',
        '{"size": {"height": 0, "width": 0}}',
        '{"size": {"height": "x", "width": "x"}}',
        '{"size": {"height": 56, "width": 112}}',
        '{"max_image_tiles": 0}',
        '{"rescale_factor": "x"}',
        '{"size": 56}',
    ],
)
def test_a_damaged_config_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        MllamaImageProcessor.from_pretrained(tmp_path)


def test_a_config_is_read_back_from_its_file() -> None:
    config = ImageProcessorConfig(56, 2, (0.5, 0.4, 0.3), (0.1, 0.7, 0.9), 0.00390625)
    assert ImageProcessorConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
