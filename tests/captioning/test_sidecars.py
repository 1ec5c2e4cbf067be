"""Caption files: what is done, what is added, and what a killed run finds when it is taken up again."""

import codecs
import os
import time
from pathlib import Path

import pytest

from mllama_cli.captioning.destinations import LeaseRefusedError
from mllama_cli.captioning.journal import KEPT_SECONDS, CaptionJournal, JournalEntry, digest
from mllama_cli.captioning.listing import ImageEntry
from mllama_cli.captioning.sidecars import CAPTIONED_MEANWHILE, LOCKED_BY_ANOTHER_RUN, Sidecars, stamp
from mllama_cli.core.caption_events import CaptionRecord, Existing
from mllama_cli.core.errors import CaptionError
from mllama_cli.system.locks import Lock


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
    return Sidecars(lambda _: str(text(entry)), existing=how, separator=", ", journal=kept)


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
    text(entry).write_text("old\n")
    destination = sidecars(tmp_path, entry, how)
    assert not destination.is_done(entry)
    assert caption(destination, entry, "new") is None
    assert text(entry).read_text() == result
    assert sidecars(tmp_path, entry, how).is_done(entry)
    assert caption(destination, entry, "again") == CAPTIONED_MEANWHILE


def test_a_run_that_is_taken_up_adds_nothing_twice_and_a_new_one_adds_again(
    tmp_path: Path, entry: ImageEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    caption(sidecars(tmp_path, entry, "append"), entry, "x")
    resumed = sidecars(tmp_path, entry, "append")
    assert resumed.is_done(entry)
    resumed.finish(exhausted=True, complete=True)
    killed = sidecars(tmp_path, entry, "append")
    assert killed.just_finished
    assert killed.is_done(entry), "perhaps the process was killed before its end"
    assert caption(killed, entry, "x") == CAPTIONED_MEANWHILE
    killed.finish(exhausted=True, complete=True)
    later = time.time() + KEPT_SECONDS
    monkeypatch.setattr(time, "time", lambda: later)
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
    change = JournalEntry(stamp(entry), digest(b"old\n"), "new")
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
    theirs = Lock.acquire_for(str(text(entry)))
    assert theirs is not None
    destination = sidecars(tmp_path, entry, "append")
    assert caption(destination, entry, "x") == LOCKED_BY_ANOTHER_RUN
    destination.finish(exhausted=True, complete=True)
    theirs.release()
    assert caption(sidecars(tmp_path, entry, "append"), entry, "x") is None


@pytest.mark.parametrize("how", ["append", "prepend"])
@pytest.mark.parametrize(
    "old",
    [
        "ol\u00e9\n".encode(), b"two\r\nlines\r\n", b"no line end", b"  indented\n\n last",
        *(mark + "ol\u00e9, \U0001f600\r\n".encode(name) for mark, name in [
            (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
            (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
        ]),
    ],
)  # fmt: skip
def test_what_is_added_to_is_kept_byte_for_byte(how: Existing, old: bytes, tmp_path: Path, entry: ImageEntry) -> None:
    text(entry).write_bytes(old)
    destination = sidecars(tmp_path, entry, how)
    assert caption(destination, entry, "new \u72ac") is None
    data = text(entry).read_bytes()
    name = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    coding = next((coding for mark, coding in name.items() if old.startswith(mark)), "utf-8-sig")
    before, after = old.decode(coding), data.decode(coding)
    assert after.rstrip() == (f"{before.rstrip()}, new \u72ac" if how == "append" else f"new \u72ac, {before.strip()}")
    kept = before.rstrip().encode(coding.replace("-sig", ""))
    if how == "append":
        assert data.startswith(old[: len(kept) - 3])
    assert destination.existing(entry) == after.replace("\r\n", "\n")


@pytest.mark.parametrize("how", ["append", "prepend"])
@pytest.mark.parametrize(
    "old",
    ["caf\u00e9 au lait".encode("latin-1"), "\u0416\u0443\u043a".encode("cp1251"), "\u4e00\u53ea\u72d7".encode("gbk"),
     "old".encode("utf-16-le"), codecs.BOM_UTF16_LE + b"odd", b"ole\xcc", b"a" * (2**20 + 1)],
)  # fmt: skip
def test_what_cannot_be_kept_fails_and_is_not_touched(
    how: Existing, old: bytes, tmp_path: Path, entry: ImageEntry
) -> None:
    text(entry).write_bytes(old)
    with pytest.raises(CaptionError, match=r"a\.txt (is not UTF-8|cannot be written: .*larger)") as caught:
        sidecars(tmp_path, entry, how).acquire(entry)
    assert caught.value.hint
    assert text(entry).read_bytes() == old
    assert sorted(path.name for path in text(entry).parent.iterdir()) == ["a.png", "a.txt", "state"]


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_nothing_is_read_or_added_through_what_is_no_file(kind: str, tmp_path: Path, entry: ImageEntry) -> None:
    victim = tmp_path / "victim"
    victim.write_text("secret")
    if kind == "link":
        text(entry).symlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(text(entry))
    else:
        text(entry).mkdir()
    with pytest.raises(CaptionError, match=r"a\.txt"):
        sidecars(tmp_path, entry, "append").acquire(entry)
    if kind == "link":
        assert caption(sidecars(tmp_path, entry, "overwrite"), entry, "new") is None
        assert text(entry).read_text() == "new\n"
        assert not text(entry).is_symlink()
    assert victim.read_text() == "secret"


def test_links_and_files_beside_are_not_harmed(tmp_path: Path, entry: ImageEntry) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".a.txt.mllama").symlink_to(victim)
    (tmp_path / "a.txt.mllama").write_text("precious")
    lock = Lock.acquire_for(str(text(entry)))
    assert lock is not None
    planted = next(tmp_path.glob(".mllama-*"))
    lock.release()
    planted.symlink_to(victim)
    for how in ("skip", "append", "overwrite"):
        with pytest.raises(CaptionError, match=rf"{text(entry)} cannot be written: .* is a link"):
            sidecars(tmp_path, entry, how).acquire(entry)
    planted.unlink()
    assert caption(sidecars(tmp_path, entry, "append"), entry, "new") is None
    assert victim.read_text() == (tmp_path / "a.txt.mllama").read_text() == "precious"


def test_names_of_up_to_255_bytes(tmp_path: Path) -> None:
    for stem in ("x" * 240, "x" * 245, "x" * 251, "\u72ac" * 83):
        path = tmp_path / f"{stem}.png"
        path.write_bytes(b"pixels")
        entry = ImageEntry(str(path), path.name)
        assert caption(sidecars(tmp_path, entry, "append"), entry, "new") is None
        assert text(entry).read_text() == "new\n"
