"""The pipeline, with a model that answers from a table."""

import subprocess
import sys
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

import pytest
from PIL import Image

from mllama_cli.captioning.asker import Answer, Question
from mllama_cli.captioning.decoding import DecodingPool
from mllama_cli.captioning.destinations import CaptionDestination
from mllama_cli.captioning.listing import find_images
from mllama_cli.captioning.postprocess import Postprocess
from mllama_cli.captioning.prompts import PromptTemplate
from mllama_cli.captioning.run import caption_images
from mllama_cli.captioning.sidecars import SidecarPaths, Sidecars
from mllama_cli.core.caption_events import BatchSize, Captioned, CaptionEvent, CaptionFailed, CaptionsPlanned
from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.errors import CaptionError, ContextLengthError


class Reader:
    """Answers with an image's width, last question first, and counts the questions."""

    model = "reader"
    image_config = ImageProcessorConfig(tile_size=56)
    draws_canvases = True

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask(self, questions: Iterable[Question | None], on_batch_size: Callable[[int], None]) -> Generator[Answer]:
        on_batch_size(100)
        batch = [question for question in questions if question is not None]
        self.asked += [question.prompt for question in batch]
        for question in reversed(batch):
            if question.image.width == 13:
                yield Answer(question.key, error=ContextLengthError("is too unlucky", "Crop it."))
            else:
                yield Answer(question.key, f"{question.image.width} wide", 2, 0.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, width in (("a", 11), ("b", 12), ("c", 12), ("d", 13)):
        Image.new("RGB", (width, 9), (width, 0, 0)).save(tmp_path / f"{name}.png")
    (tmp_path / "e.png").write_text("no picture")
    return tmp_path


def run(folder: Path, reader: Reader, destination: CaptionDestination | None = None) -> Generator[CaptionEvent]:
    listing = find_images([str(folder)])
    destination = destination or Sidecars(SidecarPaths(listing.entries, ".txt"))
    plan = listing.plan(destination.is_done)
    return caption_images(plan, reader, destination, PromptTemplate("How wide?"), Postprocess(), pool=DecodingPool(0))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".png")


def test_each_image_has_one_event_and_equal_ones_are_asked_about_once(folder: Path) -> None:
    reader = Reader()
    plan, *events = run(folder, reader)
    assert plan == CaptionsPlanned(5, 0)
    assert reader.asked == ["How wide?"] * 3
    told = [
        (Path(event.record.path).name, event.record.caption or event.record.error, event.record.seconds)
        for event in events
        if isinstance(event, Captioned | CaptionFailed)
    ]
    assert told == [
        ("e.png", "is not a picture: it looks like text", 0.0),
        ("d.png", "is too unlucky", 0.0),
        ("b.png", "12 wide", 0.5),
        ("c.png", "12 wide", 0.0),
        ("a.png", "11 wide", 0.5),
    ]
    assert events[0] == BatchSize(100)
    assert names(folder) == ["a.txt", "b.txt", "c.txt"]


def test_a_run_that_is_closed_anywhere_keeps_what_is_written_and_holds_nothing(folder: Path) -> None:
    written = []
    for count in range(1, 7):
        for name in names(folder):
            (folder / name).unlink()
        events = run(folder, Reader())
        for _ in range(count):
            next(events)
        events.close()
        written.append(set(names(folder)))
    assert written[1:] == [set(), set(), set(), {"b.txt"}, {"b.txt", "c.txt"}]
    assert next(run(folder, Reader())) == CaptionsPlanned(5, 2)


def test_a_full_disk_ends_the_run_and_holds_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    events = run(folder, Reader())
    assert isinstance(next(events), CaptionsPlanned)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CaptionError, match="No space left"):
        list(events)
    assert names(folder) == []


def test_it_needs_no_torch_for_a_model_that_runs_elsewhere() -> None:
    code = "import mllama_cli.captioning.run, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
