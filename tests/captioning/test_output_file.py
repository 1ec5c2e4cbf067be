"""One file of captions: it is appended line by line, and whatever stops the run, it can be resumed."""

import csv
import json
import os
from pathlib import Path

import pytest

from mllama_cli.captioning.listing import ImageEntry
from mllama_cli.captioning.output_file import OutputFile
from mllama_cli.captioning.records import MAX_RECORD_BYTES
from mllama_cli.core.caption_events import CaptionRecord
from mllama_cli.core.errors import CaptionError, UsageError

A, B, C = (ImageEntry(f"d/{name}.png", f"{name}.png") for name in "abc")


def add(file: OutputFile, entry: ImageEntry, caption: str = "", error: str = "") -> None:
    lease = file.acquire(entry)
    record = CaptionRecord(entry.path, caption, 3, 4, 5, 0.12345, "m", "p", "ab12", error)
    if error:
        lease.release(record)
    else:
        lease.write(record)


def rows(path: Path) -> list[dict[str, object]]:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(params=["captions.jsonl", "captions.csv"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def test_every_picture_has_a_line_with_all_that_is_known(path: Path) -> None:
    file = OutputFile(str(path))
    add(file, A, 'two\nlines, "quoted" 犬')
    add(file, B, error="is cut short")
    file.finish(exhausted=True, complete=False)
    first, second = rows(path)
    assert list(first) == [
        "path", "caption", "width", "height", "tokens", "seconds", "model", "prompt", "sha256", "error",
    ]  # fmt: skip
    assert (first["path"], first["caption"], str(first["seconds"])) == ("d/a.png", 'two\nlines, "quoted" 犬', "0.123")
    assert not first["error"]
    assert second["error"] == "is cut short"
    assert not second["caption"]
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_it_goes_on_where_it_was_and_tries_again_what_failed(path: Path) -> None:
    file = OutputFile(str(path))
    add(file, A, "one\nline")
    add(file, B, error="unreadable")
    file.finish(exhausted=False, complete=False)
    file = OutputFile(str(path))
    assert [file.is_done(p) for p in (A, B, C)] == [True, False, False]
    add(file, B, "now it is there")
    add(file, C, "c")
    file.finish(exhausted=True, complete=True)
    assert [(row["path"], row["caption"]) for row in rows(path)] == [
        ("d/a.png", "one\nline"),
        ("d/b.png", "now it is there"),
        ("d/c.png", "c"),
    ]


def test_every_place_where_a_power_cut_may_end_it(path: Path) -> None:
    file = OutputFile(str(path))
    add(file, A, 'first\nwith "quotes"')
    end_of_first = path.stat().st_size
    add(file, B, 'second\nwith "quotes"')
    file.finish(exhausted=False, complete=False)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        file = OutputFile(str(path))
        assert file.is_done(A) == (cut >= end_of_first - 1), "only its line end is missing"
        assert file.is_done(B) == (cut == len(whole) - 1)
        if not file.is_done(A):
            add(file, A, 'first\nwith "quotes"')
        if not file.is_done(B):
            add(file, B, 'second\nwith "quotes"')
        file.finish(exhausted=True, complete=True)
        assert path.read_bytes() == whole


def test_overwriting_keeps_the_old_file_until_the_new_one_is_whole(path: Path) -> None:
    file = OutputFile(str(path))
    add(file, A, "old")
    file.finish(exhausted=True, complete=True)
    file = OutputFile(str(path), overwrite=True, run="12345678")
    assert not file.is_done(A)
    add(file, A, "new")
    file.finish(exhausted=False, complete=False)
    assert [row["caption"] for row in rows(path)] == ["old"]
    file = OutputFile(str(path), overwrite=True, run="12345678")
    assert file.is_done(A)
    add(file, B, "b")
    file.finish(exhausted=True, complete=True)
    assert [row["caption"] for row in rows(path)] == ["new", "b"]
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_two_runs_do_not_write_one_file(path: Path) -> None:
    file = OutputFile(str(path))
    with pytest.raises(CaptionError, match="Another run is writing"):
        OutputFile(str(path))
    file.finish(exhausted=True, complete=True)
    OutputFile(str(path)).finish(exhausted=True, complete=True)


OURS = (
    '{"path": "a.png", "caption": "a", "width": 1, "height": 1, "tokens": 1, "seconds": 0.1, "model": "m", '
    '"prompt": "p", "sha256": "s", "error": null}\n'
)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        "a shopping list\n", '["json"]\n', "name,age\nme,7\n", "{\n", "no line end", "0", "\n\n", "\0\0",
        '{"id": 1, "x": 2}\n{"id": 2}', '{"path": "/x/y.png", "note": "my data"}', '{"path": "/x/y.png"}\n',
        '{"path": "a.png", "caption": "mine"}', '{"path": "a.png", "caption": mine', '{"path": 1', OURS + "mine",
        OURS + '{"path": "a.png", "caption": "mine"}\n', OURS + '{"path": "a", "error": "x"}\n',
        "path,caption\na.png,mine\n", "path,caption\na.png,mine", "path;caption\n", "mine,path,caption,width",
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_not_touched(content: str, overwrite: bool, path: Path) -> None:
    path.write_text(content)
    with pytest.raises(UsageError, match="something other than captions"):
        OutputFile(str(path), overwrite=overwrite, run="12345678")
    assert path.read_text() == content
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["link", "dangling", "hard link", "folder"])
def test_nothing_is_written_through_a_link(kind: str, overwrite: bool, path: Path) -> None:
    victim = path.with_name("victim")
    if kind != "dangling":
        victim.write_text(OURS)
    if kind == "folder":
        path.mkdir()
    elif kind == "hard link":
        os.link(victim, path)
    else:
        path.symlink_to(victim)
    with pytest.raises(CaptionError, match=r"is a link|hard link|regular file"):
        OutputFile(str(path), overwrite=overwrite, run="12345678")
    assert victim.exists() == (kind != "dangling")
    assert kind == "dangling" or victim.read_text() == OURS
    assert len(list(path.parent.iterdir())) == 1 + (kind != "dangling")


def test_neighbors_of_the_user_stay(path: Path) -> None:
    for suffix in (".new", ".part", ".mllama", ".tmp", ".old"):
        path.with_name(path.name + suffix).write_text("precious")
        path.with_name(f".{path.name}{suffix}").symlink_to(path.with_name(path.name + suffix))
    for overwrite in (False, False, True):
        file = OutputFile(str(path), overwrite=overwrite, run="12345678")
        add(file, A, error="failed")
        file.finish(exhausted=True, complete=False)
    assert len(rows(path)) == 1
    beside = [each for each in path.parent.iterdir() if each != path]
    assert len(beside) == 10
    assert all(each.read_text() == "precious" for each in beside)


def test_an_editor_that_drops_the_last_line_end_loses_nothing(path: Path) -> None:
    file = OutputFile(str(path))
    add(file, A, "mended by hand")
    file.finish(exhausted=True, complete=True)
    whole = path.read_bytes()
    path.write_bytes(whole.rstrip(b"\n"))
    file = OutputFile(str(path))
    assert file.is_done(A)
    file.finish(exhausted=True, complete=True)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("length", [200, 240, 249])
@pytest.mark.parametrize("overwrite", [False, True])
def test_long_names(length: int, overwrite: bool, tmp_path: Path) -> None:
    path = tmp_path / ("x" * length + ".jsonl")
    for _ in range(2):
        file = OutputFile(str(path), overwrite=overwrite, run="12345678")
        add(file, A, error="failed")
        file.finish(exhausted=True, complete=True)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_only_two_endings_are_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.jsonl or \.csv"):
        OutputFile(str(tmp_path / "captions.txt"))


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CaptionError, match="cannot be written: No such file or directory"):
        OutputFile(str(tmp_path / "no" / "captions.csv"))


FOREIGN = {
    "deep": b"[" * 5000 + b"\n",
    "a long number": b'{"path": "a.png", "caption": ' + b"9" * 5000,
    "a number of many digits in a line": b"9" * 5000 + b"\n",
    "a field beyond what the csv module reads": b"x" * 200_000 + b"\n1\n",
    "a quote that is never closed": b'path,"' + b"x\n" * 100_000,
    "one column": b"path\nmine",
    "a line without end": b"x" * (MAX_RECORD_BYTES + 9),
    "a quoted field without end": b'"' + b"x" * (MAX_RECORD_BYTES + 9),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_of_anything_else_is_refused_and_kept(path: Path, content: bytes, overwrite: bool) -> None:
    path.write_bytes(content)
    with pytest.raises(UsageError, match="holds something other than captions"):
        OutputFile(str(path), overwrite=overwrite, run="x")
    assert path.read_bytes() == content
