"""Partial files: whose they are, and what tells that a download is sound."""

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mllama_cli.core.errors import DownloadError
from mllama_cli.hub.transfer import Transfer, abandoned_partials, partial_file

NO_PROCESS = 2**30
"""Larger than any process id."""

DATA = b"weights" * 100


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    return tmp_path / hashlib.sha256(DATA).hexdigest()


def transfer(blob: Path, monkeypatch: pytest.MonkeyPatch, data: bytes = DATA) -> tuple[Transfer, list[int]]:
    """A transfer that gets ``data`` at once, and the counts that it reports."""
    grown: list[int] = []
    made = Transfer("https://hub/weights", blob, len(DATA), on_bytes=grown.append, stop=threading.Event())

    class Response:
        status_code = 206
        headers: dict[str, str] = {}  # noqa: RUF012

        def __enter__(self) -> "Response":
            return self

        def __exit__(self, *_: object) -> None: ...

        def iter_raw(self) -> list[bytes]:
            return [data[made.partial.stat().st_size if made.partial.exists() else 0 :]]

    monkeypatch.setattr("mllama_cli.hub.transfer.streaming", lambda url, start: Response())
    return made, grown


def test_partial_files_of_processes_that_are_gone_are_abandoned_the_largest_first(blob: Path) -> None:
    small, large = partial_file(blob, NO_PROCESS), partial_file(blob, NO_PROCESS + 1)
    small.write_bytes(b"1")
    large.write_bytes(b"12")
    partial_file(blob, os.getppid()).write_bytes(b"123")  # at work
    blob.with_name(f"{blob.name}.0a1b2c3d.incomplete").write_bytes(b"1234")  # huggingface_hub's own
    assert list(abandoned_partials(blob).items()) == [(large, 2), (small, 1)]


def test_one_of_another_machine_is_abandoned_once_it_is_old(blob: Path) -> None:
    theirs = blob.with_name(f"{blob.name}.m00000000-7.incomplete")
    theirs.write_bytes(b"1")
    assert abandoned_partials(blob) == {}
    an_hour_ago = time.time() - 3600
    os.utime(theirs, (an_hour_ago, an_hour_ago))
    assert abandoned_partials(blob) == {theirs: 1}


def test_a_partial_file_that_vanishes_meanwhile_is_left_out(blob: Path) -> None:
    partial_file(blob, NO_PROCESS).symlink_to(blob.with_name("finished"))
    assert abandoned_partials(blob) == {}


def test_what_was_abandoned_is_taken_over_and_the_rest_removed(blob: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        partial_file(blob, NO_PROCESS + number).write_bytes(DATA[: 100 * number])
    made, grown = transfer(blob, monkeypatch)
    assert made.adopt() == 200
    made.run()
    assert blob.read_bytes() == DATA
    assert sum(grown) == len(DATA) - 200
    assert list(blob.parent.iterdir()) == [blob]


def test_a_blob_that_another_process_finished_is_taken(blob: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, grown = transfer(blob, monkeypatch)
    blob.write_bytes(DATA)
    made.run()
    assert grown == []


@pytest.mark.parametrize("name", ["sha256", "git"])
def test_every_name_that_the_hub_gives_is_a_checksum(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = hashlib.sha1(b"blob %d\0" % len(DATA) + DATA).hexdigest()
    blob = tmp_path / (git if name == "git" else hashlib.sha256(DATA).hexdigest())
    made, _ = transfer(blob, monkeypatch, data=b"W" + DATA[1:])
    with pytest.raises(DownloadError, match="checksum mismatch"):
        made.run()
    assert list(tmp_path.iterdir()) == []
    transfer(blob, monkeypatch)[0].run()
    assert blob.read_bytes() == DATA


def test_what_follows_the_declared_size_is_not_read(blob: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, grown = transfer(blob, monkeypatch)

    class Endless:
        status_code = 200
        headers: dict[str, str] = {}  # noqa: RUF012

        def __enter__(self) -> "Endless":
            return self

        def __exit__(self, *_: object) -> None: ...

        def iter_raw(self) -> Iterator[bytes]:
            yield DATA[:10]
            yield DATA[10:] + b"more"
            raise AssertionError("read on")

    monkeypatch.setattr("mllama_cli.hub.transfer.streaming", lambda url, start: Endless())
    made.adopt()
    made.run()
    assert blob.read_bytes() == DATA
    assert sum(grown) == len(DATA)
