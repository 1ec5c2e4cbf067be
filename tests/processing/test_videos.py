"""Frames of videos that ffmpeg made, and of files that say what is not so."""

import os
import threading
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ImageError, MllamaError, UsageError
from mllama_cli.processing.documents import Excerpt, read_images, read_source
from mllama_cli.processing.images import open_image
from tests.documents import DOCUMENTS, needs_video

pytestmark = needs_video

CLIP = DOCUMENTS / "clip.mp4"
FORMATS = ["mp4", "mov", "webm", "avi", "flv", "wmv", "mpg"]


def colours(images: tuple[ImagePart, ...]) -> str:
    """Return R, G or B for each image, by its middle."""
    pixels = [open_image(image) for image in images]
    return "".join("RGB"[int(np.argmax(each.getpixel((each.width // 2, each.height // 2))))] for each in pixels)


def corners(image: ImagePart) -> list[bool]:
    """Return whether each corner is white: upper left, upper right, lower left, lower right."""
    pixels = open_image(image)
    places = [(x, y) for y in (3, pixels.height - 4) for x in (3, pixels.width - 4)]
    return [min(pixels.getpixel(place)) > 200 for place in places]  # type: ignore[type-var]


def refused(source: str, *words: str) -> MllamaError:
    with pytest.raises(MllamaError) as caught:
        read_images(source)
    assert all(word in caught.value.message for word in words), caught.value.message
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("suffix", FORMATS)
def test_frames_are_spread_evenly(suffix: str) -> None:
    found = read_source(str(DOCUMENTS / f"clip.{suffix}"), excerpt=Excerpt(frames=3))
    assert (colours(found.images), found.kind) == ("RGB", "video")
    assert corners(found.images[0]) == [True, False, False, False]


def test_eight_frames_unless_another_number_is_asked_for() -> None:
    images = read_images(str(CLIP))
    assert colours(images) == "RRRGGBBB"
    assert [image.name for image in images[:2]] == [f"{CLIP}#0:00.1", f"{CLIP}#0:00.5"]
    assert len(read_images(str(CLIP), frames=100)) == 30, "each frame comes once"


@pytest.mark.parametrize(
    ("selection", "expected"),
    [("1-2", "GGGGGGGG"), ("0:01.5", "G"), ("0:02-", "BBBBBBBB"), ("0-0:02", "RRRRGGGG"), ("all", "RRRGGBBB"),
     ("2.5-1:00:00", "BBBBB"), ("3", "B")],
)  # fmt: skip
def test_a_part_of_a_video(selection: str, expected: str) -> None:
    assert colours(read_images(f"{CLIP}#{selection}")) == expected


@pytest.mark.parametrize("selection", ["5", "0:05-0:09"])
def test_a_part_that_is_not_there(selection: str) -> None:
    assert "#0:00-" in refused(f"{CLIP}#{selection}", "clip.mp4 ends at 0:03, before 0:05").hint


@pytest.mark.parametrize("selection", ["1,2", "1,2,3,4"])
def test_a_selection_that_names_no_part_of_a_video(selection: str) -> None:
    refused(f"{CLIP}#{selection}", "is not a part of one")


def test_a_turned_video_is_upright_and_its_pixels_are_square() -> None:
    turned = read_images(str(DOCUMENTS / "turned.mp4"))[0]
    assert open_image(turned).size == (48, 64)
    assert corners(turned) == [False, False, True, False], "as ffmpeg shows it"
    assert open_image(read_images(str(DOCUMENTS / "wide.mp4"))[0]).size == (128, 48)


def test_a_frame_is_shown_until_the_next_one() -> None:
    variable = str(DOCUMENTS / "variable.mkv")
    assert [colours(read_images(f"{variable}#{time}")) for time in ("0.5", "1.5", "1.95", "2.5")] == [
        "R",
        "R",
        "G",
        "B",
    ]
    assert "G" not in colours(read_images(f"{variable}#1.0-1.8"))


def test_a_stream_without_a_length_or_an_index() -> None:
    assert colours(read_images(str(DOCUMENTS / "live.mkv"), frames=3)) == "RGB"


def test_videos_from_stdin_and_pipes(tmp_path: Path) -> None:
    data = CLIP.read_bytes()
    images = read_images("-#1-2", BytesIO(data))
    assert (colours(images), images[0].name) == ("GGGGGGGG", "stdin#0:01")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    assert colours(read_images(str(pipe), frames=3)) == "RGB"
    writer.join()


def test_sound_alone() -> None:
    refused(str(DOCUMENTS / "sound.mp4"), "sound.mp4 has no pictures in it")


def boxes_of(data: bytes, kind: bytes) -> list[int]:
    """Return the offsets of the contents of an MP4 file's boxes."""
    return [index + 4 for index in range(len(data)) if data[index : index + 4] == kind]


@pytest.mark.parametrize("duration", [0, 2**31 - 1, 2**32 - 1])
def test_a_file_that_lies_about_its_length(duration: int, tmp_path: Path) -> None:
    data = bytearray(CLIP.read_bytes())
    for kind, offset in ((b"mvhd", 16), (b"mdhd", 16), (b"tkhd", 20)):
        for start in boxes_of(data, kind):
            data[start + offset : start + offset + 4] = duration.to_bytes(4)
    for start in boxes_of(data, b"elst") if duration else ():
        data[start + 8 : start + 12] = duration.to_bytes(4)
    path = tmp_path / "lie.mp4"
    path.write_bytes(data)
    assert set(colours(read_images(str(path), frames=3))) >= {"R", "B"}


def test_a_video_that_is_cut_short_or_damaged_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "cut.webm"
    whole = (DOCUMENTS / "clip.webm").read_bytes()
    results = []
    for length in range(30, len(whole), 60):
        path.write_bytes(whole[:length])
        try:
            results.append(len(read_images(str(path))))
        except ImageError:
            results.append(0)
    assert results[0] == 0, "a header alone"
    assert results[-1] > 0, "all but the last frames"


def test_a_video_without_frames(tmp_path: Path) -> None:
    path = tmp_path / "empty.mp4"
    data = CLIP.read_bytes()
    start = data.index(b"mdat") + 4
    path.write_bytes(data[:start] + bytes(len(data) - start) if start > data.index(b"moov") else data[:40])
    refused(str(path), "empty.mp4 is a video")


def test_an_enormous_frame_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    refused(str(DOCUMENTS / "huge.webm"), "8192 x 8192", "36 million pixels")
    path = tmp_path / "huge.mov"  # its header names a small size, its frames a larger one
    data = (DOCUMENTS / "clip.mov").read_bytes()
    path.write_bytes(data.replace(b"\x08\x00\x30\x00\x40", b"\x08" + (30_000).to_bytes(2) * 2))
    refused(str(path), "huge.mov is a video without a frame")


def test_more_frames_than_a_question_has_room_for() -> None:
    with pytest.raises(UsageError, match="one question takes 5 more images"):
        read_source(str(CLIP), room=5)
