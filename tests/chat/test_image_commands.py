"""Slash commands for images, and pictures dropped into a message."""

from pathlib import Path

import pytest
from PIL import Image

from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import MllamaError
from mllama_cli.processing.images import open_image
from tests.chat.harness import DATA, PHOTO, ChatHarness, photo
from tests.decodes import count_png_decodes
from tests.documents import DOCUMENTS, needs_pdf, needs_video


def test_a_picture_waits_for_its_question(harness: ChatHarness) -> None:
    said = harness.type(f"/image {PHOTO}", "What is this?")
    assert "Attached drawing.png" in said
    assert [chips for chips, _ in harness.typed.shown] == [[], ["drawing.png"], []]
    (question, _) = harness.dialogue.conversation
    assert question.images[0].data == photo().data
    assert question.text == "What is this?"


def test_a_dropped_picture_alone_waits_and_inside_a_message_goes_along(harness: ChatHarness, tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), "red").save(tmp_path / "my photo.png")
    harness.type(f"'{tmp_path}/my photo.png'")
    assert harness.roles == []
    assert len(harness.dialogue.attachments) == 1
    harness.type(f"What is in {tmp_path!s}/my\\ photo.png now?")
    assert len(harness.dialogue.conversation.images) == 2
    assert harness.dialogue.conversation.messages[0].text == "What is in now?"


def test_a_missing_picture_is_an_error_and_nothing_is_sent(harness: ChatHarness) -> None:
    said = harness.type("what is /nowhere/at/all.png ?", "/image nope.png", "/image")
    assert said.count("mllama: ") == 3
    assert "/nowhere/at/all.png" in said
    assert harness.roles == []


@pytest.mark.parametrize("line", ["/image phoot.png", "/image ./phoot.png", "what is ./phoot.png?", "'phoot.png'"])
def test_a_misspelt_picture_is_guessed(harness: ChatHarness, tmp_path: Path, line: str) -> None:
    Image.new("RGB", (30, 20), "red").save(tmp_path / "photo.png")
    assert "Did you mean photo.png?" in harness.type(line)
    assert harness.roles == []


def test_pictures_can_be_listed_and_taken_away(harness: ChatHarness) -> None:
    assert "No images" in harness.type("/images")
    assert "Nothing is attached" in harness.type("/detach 1")
    card = str(DATA / "card.png")
    said = harness.type(
        f"/image {PHOTO}", f"/image {card}", "/images", "/detach 5", "/detach ²", "/detach 1", "/images"
    )
    assert "1. drawing.png" in said
    assert "a number from 1 to 2" in said
    assert [a.name.rpartition("/")[2] for a in harness.dialogue.attachments] == ["card.png"]
    harness.type("/detach")
    assert harness.dialogue.attachments == []


def test_previews_are_shown_on_demand(harness: ChatHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "mllama_cli.terminal.graphics.show_preview", lambda terminal, image, **size: shown.append(image.size)
    )
    monkeypatch.setattr(
        "mllama_cli.terminal.graphics.show_thumbnails",
        lambda terminal, thumbnails: shown.extend(each.image.size for each in thumbnails),
    )
    assert "no image to show" in harness.type("/preview")
    harness.type(f"/image {PHOTO}")
    assert shown == []
    harness.type("/preview", "What?", "/preview", "/preview on", f"/image {PHOTO}", "/preview off", f"/image {PHOTO}")
    assert len(shown) == 3
    assert "takes the number" in harness.type("/preview x")


def test_an_image_is_decoded_once(harness: ChatHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = count_png_decodes(monkeypatch)
    harness.type("/preview on", f"/image {PHOTO}", "What is this?", "/preview", "/regen", "/edit", "And now?")
    assert harness.roles == ["user", "assistant"]
    assert len(opened) == 1


def test_the_clipboards_picture_is_attached(harness: ChatHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mllama_cli.processing.clipboard.read_clipboard_image", photo)
    harness.type("/paste")
    assert harness.dialogue.attachments == [photo()]

    def nothing() -> ImagePart:
        raise MllamaError("There is no picture in the clipboard", "Copy one first.")

    monkeypatch.setattr("mllama_cli.processing.clipboard.read_clipboard_image", nothing)
    assert "no picture in the clipboard" in harness.type("/paste")


@pytest.mark.parametrize("pattern", ["*.png", "p?.png", "{tmp}/p*", "{tmp}", ".", "{tmp}/*.PNG", "p[0-9].png"])
def test_images_are_attached_by_pattern_and_folder(harness: ChatHarness, tmp_path: Path, pattern: str) -> None:
    for name in ("p1.png", "p2.png"):
        Image.new("RGB", (30, 20), "red").save(tmp_path / name)
    (tmp_path / "p.txt").write_text("")
    (tmp_path / "p4.PNG").mkdir()
    (tmp_path / "p4.PNG").rmdir()
    harness.type(f"/image {pattern.format(tmp=tmp_path)}")
    expected = [] if "PNG" in pattern else ["p1.png", "p2.png"]
    assert harness.dialogue.chips == expected


def test_many_images_are_asked_about(harness: ChatHarness, tmp_path: Path) -> None:
    for number in range(9):
        Image.new("RGB", (30, 20), "red").save(tmp_path / f"{number}.png")
    harness.typed.choices = ["n", "y"]
    harness.type("/image *.png")
    assert harness.dialogue.chips == []
    harness.type("/image *.png")
    assert len(harness.dialogue.chips) == 9


@needs_pdf
def test_pages_are_attached_by_command_and_from_a_message(harness: ChatHarness, tmp_path: Path) -> None:
    letter = DOCUMENTS / "letter.pdf"
    said = harness.type(f"/image {letter}#2-3")
    assert "Attached letter.pdf#2 792x1120, 4 tiles." in said
    assert harness.dialogue.chips == ["letter.pdf#2", "letter.pdf#3"]
    harness.type(f"What is on {letter}#1 ?")
    assert [image.name for image in harness.dialogue.conversation.images] == [f"{letter}#{n}" for n in (2, 3, 1)]
    said = harness.type(f"/image {DOCUMENTS}/encrypted.pdf", f"/image {letter}#7", f"sum up {letter}#1,9")
    assert "encrypted.pdf is encrypted" in said
    assert "has 4 pages, and no page 7" in said
    assert "no page 9" in said
    assert len(harness.roles) == 2, "nothing was sent"


@needs_video
def test_frames_of_a_video_are_attached(harness: ChatHarness) -> None:
    harness.type(f"/image {DOCUMENTS}/clip.mp4#0:01-0:02")
    assert harness.dialogue.chips[:2] == ["clip.mp4#0:01", "clip.mp4#0:01.1"]
    assert len(harness.dialogue.chips) == 8


def test_an_attached_image_is_cropped_in_its_place(harness: ChatHarness) -> None:
    card = DATA / "card.png"
    said = harness.type(f"/image {card}", f"/image {PHOTO}", "/crop 1 10,20,100,50")
    assert "Attached card.png#10,20,100,50 100x50, 2 tiles." in said
    assert harness.dialogue.chips == ["card.png#10,20,100,50", "drawing.png"]
    cropped = open_image(harness.dialogue.attachments[0])
    with Image.open(card) as whole:
        assert cropped.tobytes() == whole.convert("RGB").crop((10, 20, 110, 70)).tobytes()
    harness.type("/crop 5 6 30 20")
    assert harness.dialogue.chips == ["card.png#10,20,100,50", "drawing.png#5,6,30,20"]


def test_the_last_image_of_the_conversation_can_be_cropped_and_asked_about(harness: ChatHarness) -> None:
    harness.type(f"What is {PHOTO} ?", "/crop 5,6,30,20", "And here?")
    assert [image.name.rpartition("/")[2] for image in harness.dialogue.conversation.images] == [
        "drawing.png",
        "drawing.png#5,6,30,20",
    ]


@pytest.mark.parametrize(
    "argument", ["", "1", "1,2,3", "a,b,c,d", "1,2,3,4,5,6", "-1,2,3,4", "9 1,2,3,4", "90000,0,1,1"]
)
def test_a_crop_that_cannot_be(harness: ChatHarness, argument: str) -> None:
    assert "There is no image to crop" in harness.type("/crop 1,2,3,4")
    harness.type(f"/image {PHOTO}")
    assert "mllama: " in harness.type(f"/crop {argument}")
    assert harness.dialogue.chips == ["drawing.png"]
