"""An image is decoded once, and what came out travels with it."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.errors import CheckpointError, ImageError, UsageError
from mllama_cli.processing.prepared import PreparedImage, image_config_of, prepare_image
from tests.checkpoints import make_checkpoint, text_only_config
from tests.decodes import count_png_decodes
from tests.processing.pictures import file_of, noise

CONFIG = ImageProcessorConfig(tile_size=56)


@pytest.fixture
def part() -> ImagePart:
    return ImagePart(file_of(noise(90, 150)), "photo.png")


def test_it_knows_its_size_and_is_equal_to_the_part_it_was_made_from(part: ImagePart) -> None:
    prepared = prepare_image(part, CONFIG)
    assert (prepared.width, prepared.height) == (90, 150)
    assert prepared == part
    assert part == prepared
    assert hash(prepared) == hash(part)
    assert (prepared.digest, repr(prepared)) == (part.digest, repr(part))
    assert Conversation.ask("?", (prepared,)) == Conversation.ask("?", (part,))
    assert prepared != ImagePart(part.data, "another name")


def test_it_is_not_decoded_again_for_the_same_model(part: ImagePart, monkeypatch: pytest.MonkeyPatch) -> None:
    decodes = count_png_decodes(monkeypatch)
    prepared = prepare_image(part, CONFIG)
    assert prepare_image(prepared, CONFIG) is prepared
    assert prepare_image(prepared, ImageProcessorConfig(tile_size=56)) is prepared
    assert len(decodes) == 1


def test_a_model_with_other_tiles_gets_a_canvas_of_its_own(part: ImagePart) -> None:
    small, large = prepare_image(part, CONFIG), ImageProcessorConfig(tile_size=112)
    other = prepare_image(small, large)
    assert other.canvas.pixels.shape[-1] == 112
    assert np.array_equal(other.canvas.pixels, prepare_image(part, large).canvas.pixels)


def test_it_travels_between_processes_with_its_digest(part: ImagePart) -> None:
    prepared = prepare_image(part, CONFIG)
    digest = prepared.digest
    received = pickle.loads(pickle.dumps(prepared))
    assert isinstance(received, PreparedImage)
    assert received == prepared
    assert vars(received)["digest"] == digest, "computed in the worker"
    assert np.array_equal(received.canvas.pixels, prepared.canvas.pixels)


def test_it_keeps_the_canvas_and_not_the_whole_image() -> None:
    prepared = prepare_image(ImagePart(file_of(Image.new("RGB", (3000, 2000)))), ImageProcessorConfig())
    arrays = [value for value in vars(prepared.canvas).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes if array.base is None else array.base.nbytes for array in arrays) == 4 * 3 * 560 * 560
    assert not any(isinstance(value, Image.Image) for value in vars(prepared).values())


@pytest.mark.parametrize("size", [(90, 150), (150, 90), (400, 30), (30, 400), (56, 56), (20, 10)])
def test_the_canvas_gives_the_resized_image_back(size: tuple[int, int]) -> None:
    image = noise(*size)
    canvas = prepare_image(ImagePart(file_of(image)), CONFIG).canvas
    height, width = canvas.size
    expected = image.resize((width, height), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(canvas.image()), np.asarray(expected))


def test_a_broken_image_is_an_error() -> None:
    with pytest.raises(ImageError, match="not a picture"):
        prepare_image(ImagePart(b"hello, world", "note.txt"), CONFIG)


def test_the_config_of_a_checkpoint(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "sees")
    assert image_config_of(tmp_path / "sees").max_image_tiles == 4
    make_checkpoint(tmp_path / "text", text_only_config())
    with pytest.raises(UsageError, match="text-only"):
        image_config_of(tmp_path / "text")
    (tmp_path / "sees" / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no preprocessor_config\.json"):
        image_config_of(tmp_path / "sees")


def test_it_needs_no_torch() -> None:
    code = "import sys, mllama_cli.processing.prepared; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
