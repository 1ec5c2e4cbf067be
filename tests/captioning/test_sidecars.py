"""Caption files: what is done, what is added, and what a killed run finds when it is taken up again."""

from pathlib import Path

import pytest

from mllama_cli.captioning.journal import Entry, Journal, digest
from mllama_cli.captioning.listing import Picture
from mllama_cli.captioning.locks import Claim
from mllama_cli.captioning.sidecars import ANOTHER_RUN, MEANWHILE, Sidecars, stamp
from mllama_cli.core.caption_events import CaptionRecord, Existing


@pytest.fixture
def picture(tmp_path: Path) -> Picture:
    path = tmp_path / "a.png"
    path.write_bytes(b"pixels")
    return Picture(str(path), "a.png")


def text(picture: Picture) -> Path:
    return Path(picture.path).with_suffix(".txt")


def journal(tmp_path: Path, run: str = "one") -> Journal:
    return Journal(run, tmp_path / "state" / "captions.db")


def sidecars(tmp_path: Path, picture: Picture, how: Existing, run: str = "one") -> Sidecars:
    kept = None if how == "skip" else journal(tmp_path, run)
    return Sidecars({picture.path: str(text(picture))}, existing=how, separator=", ", journal=kept)


def caption(destination: Sidecars, picture: Picture, said: str) -> str | None:
    """The reason why nothing was done, or None."""
    held = destination.take(picture)
    if isinstance(held, str):
        return held
    assert held.write(CaptionRecord(picture.path, said)) == str(text(picture))
    return None


def test_skip_leaves_what_is_there_and_takes_an_empty_file_for_none(tmp_path: Path, picture: Picture) -> None:
    destination = sidecars(tmp_path, picture, "skip")
    assert not destination.is_done(picture)
    text(picture).touch()
    assert not destination.is_done(picture)
    assert caption(destination, picture, "a dog") is None
    assert text(picture).read_text() == "a dog\n"
    assert destination.is_done(picture)
    assert caption(destination, picture, "a cat") == MEANWHILE, "written since the list was made"
    assert text(picture).read_text() == "a dog\n"


@pytest.mark.parametrize(
    ("how", "result"), [("overwrite", "new\n"), ("append", "old, new\n"), ("prepend", "new, old\n")]
)
def test_the_other_ways(how: Existing, result: str, tmp_path: Path, picture: Picture) -> None:
    text(picture).write_text("\ufeffold\n")
    destination = sidecars(tmp_path, picture, how)
    assert not destination.is_done(picture)
    assert caption(destination, picture, "new") is None
    assert text(picture).read_text() == result
    assert sidecars(tmp_path, picture, how).is_done(picture)
    assert caption(destination, picture, "again") == MEANWHILE


def test_a_run_that_is_taken_up_adds_nothing_twice_and_a_new_one_adds_again(tmp_path: Path, picture: Picture) -> None:
    caption(sidecars(tmp_path, picture, "append"), picture, "x")
    resumed = sidecars(tmp_path, picture, "append")
    assert resumed.is_done(picture)
    resumed.finish(through=True, complete=True)
    again = sidecars(tmp_path, picture, "append")
    assert not again.is_done(picture)
    caption(again, picture, "x")
    assert text(picture).read_text() == "x, x\n"
    other = sidecars(tmp_path, picture, "append", run="another command")
    assert not other.is_done(picture)


def test_a_run_with_failures_stays_open(tmp_path: Path, picture: Picture) -> None:
    destination = sidecars(tmp_path, picture, "append")
    caption(destination, picture, "x")
    destination.finish(through=True, complete=False)
    assert sidecars(tmp_path, picture, "append").is_done(picture)


def test_killed_between_the_journal_and_the_file(tmp_path: Path, picture: Picture) -> None:
    text(picture).write_text("old\n")
    entry = Entry(stamp(picture), digest("old\n"), "new")
    journal(tmp_path).add(str(Path(picture.path).resolve()), entry)
    destination = sidecars(tmp_path, picture, "append")
    assert not destination.is_done(picture)
    assert caption(destination, picture, "not asked for") == MEANWHILE
    assert text(picture).read_text() == "old, new\n", "the caption that was found before is put in its place"
    assert caption(sidecars(tmp_path, picture, "append"), picture, "new") == MEANWHILE
    assert text(picture).read_text() == "old, new\n"


def test_a_picture_that_changed_is_captioned_again(tmp_path: Path, picture: Picture) -> None:
    caption(sidecars(tmp_path, picture, "overwrite"), picture, "a dog")
    Path(picture.path).write_bytes(b"other pixels")
    destination = sidecars(tmp_path, picture, "overwrite")
    assert not destination.is_done(picture)
    assert caption(destination, picture, "a cat") is None
    assert text(picture).read_text() == "a cat\n"


def test_what_another_run_holds_is_left_to_it_and_keeps_this_run_open(tmp_path: Path, picture: Picture) -> None:
    theirs = Claim.take(str(text(picture)))
    assert theirs is not None
    destination = sidecars(tmp_path, picture, "append")
    assert caption(destination, picture, "x") == ANOTHER_RUN
    destination.finish(through=True, complete=True)
    theirs.drop()
    assert caption(sidecars(tmp_path, picture, "append"), picture, "x") is None
