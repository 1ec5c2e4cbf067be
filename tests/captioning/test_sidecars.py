"""Caption files: what is done, what is added, and what a killed run finds when it is taken up again."""

from pathlib import Path

import pytest

from mllama_cli.captioning.destinations import LeaseRefusedError
from mllama_cli.captioning.journal import CaptionJournal, JournalEntry, digest
from mllama_cli.captioning.listing import ImageEntry
from mllama_cli.captioning.locks import CaptionLock
from mllama_cli.captioning.sidecars import CAPTIONED_MEANWHILE, LOCKED_BY_ANOTHER_RUN, Sidecars, stamp
from mllama_cli.core.caption_events import CaptionRecord, Existing


@pytest.fixture
def entry(tmp_path: Path) -> ImageEntry:
    path = tmp_path / "a.png"
    path.write_bytes(b"pixels")
    return ImageEntry(str(path), "a.png")


def text(entry: ImageEntry) -> Path:
    return Path(entry.path).with_suffix(".txt")


def journal(tmp_path: Path, run: str = "one") -> CaptionJournal:
    return CaptionJournal(run, tmp_path / "state" / "captions.db")


def sidecars(tmp_path: Path, entry: ImageEntry, how: Existing, run: str = "one") -> Sidecars:
    kept = None if how == "skip" else journal(tmp_path, run)
    return Sidecars({entry.path: str(text(entry))}, existing=how, separator=", ", journal=kept)


def caption(destination: Sidecars, entry: ImageEntry, said: str) -> str | None:
    """The reason why nothing was done, or None."""
    try:
        lease = destination.acquire(entry)
    except LeaseRefusedError as refusal:
        return str(refusal)
    assert lease.write(CaptionRecord(entry.path, said)) == str(text(entry))
    return None


def test_skip_leaves_what_is_there_and_takes_an_empty_file_for_none(tmp_path: Path, entry: ImageEntry) -> None:
    destination = sidecars(tmp_path, entry, "skip")
    assert not destination.is_done(entry)
    text(entry).touch()
    assert not destination.is_done(entry)
    assert caption(destination, entry, "a dog") is None
    assert text(entry).read_text() == "a dog\n"
    assert destination.is_done(entry)
    assert caption(destination, entry, "a cat") == CAPTIONED_MEANWHILE, "written since the list was made"
    assert text(entry).read_text() == "a dog\n"


@pytest.mark.parametrize(
    ("how", "result"), [("overwrite", "new\n"), ("append", "old, new\n"), ("prepend", "new, old\n")]
)
def test_the_other_ways(how: Existing, result: str, tmp_path: Path, entry: ImageEntry) -> None:
    text(entry).write_text("\ufeffold\n")
    destination = sidecars(tmp_path, entry, how)
    assert not destination.is_done(entry)
    assert caption(destination, entry, "new") is None
    assert text(entry).read_text() == result
    assert sidecars(tmp_path, entry, how).is_done(entry)
    assert caption(destination, entry, "again") == CAPTIONED_MEANWHILE


def test_a_run_that_is_taken_up_adds_nothing_twice_and_a_new_one_adds_again(tmp_path: Path, entry: ImageEntry) -> None:
    caption(sidecars(tmp_path, entry, "append"), entry, "x")
    resumed = sidecars(tmp_path, entry, "append")
    assert resumed.is_done(entry)
    resumed.finish(exhausted=True, complete=True)
    again = sidecars(tmp_path, entry, "append")
    assert not again.is_done(entry)
    caption(again, entry, "x")
    assert text(entry).read_text() == "x, x\n"
    other = sidecars(tmp_path, entry, "append", run="another command")
    assert not other.is_done(entry)


def test_a_run_with_failures_stays_open(tmp_path: Path, entry: ImageEntry) -> None:
    destination = sidecars(tmp_path, entry, "append")
    caption(destination, entry, "x")
    destination.finish(exhausted=True, complete=False)
    assert sidecars(tmp_path, entry, "append").is_done(entry)


def test_killed_between_the_journal_and_the_file(tmp_path: Path, entry: ImageEntry) -> None:
    text(entry).write_text("old\n")
    change = JournalEntry(stamp(entry), digest("old\n"), "new")
    journal(tmp_path).add(str(Path(entry.path).resolve()), change)
    destination = sidecars(tmp_path, entry, "append")
    assert not destination.is_done(entry)
    assert caption(destination, entry, "not asked for") == CAPTIONED_MEANWHILE
    assert text(entry).read_text() == "old, new\n", "the caption that was found before is put in its place"
    assert caption(sidecars(tmp_path, entry, "append"), entry, "new") == CAPTIONED_MEANWHILE
    assert text(entry).read_text() == "old, new\n"


def test_a_picture_that_changed_is_captioned_again(tmp_path: Path, entry: ImageEntry) -> None:
    caption(sidecars(tmp_path, entry, "overwrite"), entry, "a dog")
    Path(entry.path).write_bytes(b"other pixels")
    destination = sidecars(tmp_path, entry, "overwrite")
    assert not destination.is_done(entry)
    assert caption(destination, entry, "a cat") is None
    assert text(entry).read_text() == "a cat\n"


def test_what_another_run_holds_is_left_to_it_and_keeps_this_run_open(tmp_path: Path, entry: ImageEntry) -> None:
    theirs = CaptionLock.acquire(str(text(entry)))
    assert theirs is not None
    destination = sidecars(tmp_path, entry, "append")
    assert caption(destination, entry, "x") == LOCKED_BY_ANOTHER_RUN
    destination.finish(exhausted=True, complete=True)
    theirs.release()
    assert caption(sidecars(tmp_path, entry, "append"), entry, "x") is None
