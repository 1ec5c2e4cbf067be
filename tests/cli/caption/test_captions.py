"""`mllama caption` with the built-in model, which says what is true of drawings."""

import csv
import json
import shutil
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.caption.folders import DATA, names
from tests.console import run_here


def test_captions_begin_with_their_prefill(folder: Path) -> None:
    picture = str(folder / "drawing.png")
    plain = run_here("caption", picture, "--workers", "0").out
    begun = run_here("caption", picture, "--workers", "0", "--prefill", "A photo of ").out
    assert begun.startswith("A photo of ")
    assert begun != plain
    record = json.loads(run_here("caption", picture, "--workers", "0", "--prefill", "A photo of", "--json").out)
    assert record["caption"] == begun.strip()
    prefixed = run_here("caption", picture, "--workers", "0", "--prefill", "A photo of", "--prefix", "ohwx, ").out
    assert prefixed == f"ohwx, {begun}"


def test_captions_are_written_next_to_their_pictures(folder: Path) -> None:
    result = run_here("caption", str(folder), "--workers", "0")
    assert (result.code, result.out) == (3, "")
    assert (folder / "drawing.txt").read_text() == "I see 3 red circles, a blue square and a yellow star.\n"
    assert (folder / "drawing 2.txt").read_bytes() == (folder / "drawing.txt").read_bytes()
    assert "HELLO" in (folder / "card.txt").read_text()
    assert names(folder) == [
        "bad.jpg", "card.png", "card.txt", "drawing 2.png", "drawing 2.txt", "drawing.png", "drawing.txt",
    ]  # fmt: skip
    assert "Captioned 3, failed 1" in result.err
    assert f"{folder}/bad.jpg: is not a picture" in result.err

    again = run_here("caption", str(folder), "--workers", "0")
    assert again.code == 3
    assert "Captioned 0, skipped 3 (done before), failed 1." in again.err


def test_a_single_picture_is_printed_and_nothing_written(folder: Path) -> None:
    before = names(folder)
    result = run_here("caption", str(folder / "drawing.png"), "-p", "How many circles are there?")
    assert (result.code, result.out, result.err) == (0, "There are 3 circles.\n", "")
    assert names(folder) == before
    record = json.loads(run_here("caption", str(folder / "card.png"), "--json").out)
    assert (record["width"], record["height"], record["model"], record["error"]) == (480, 280, "sketch", None)
    assert "HELLO" in record["caption"]
    bad = run_here("caption", str(folder / "bad.jpg"))
    assert (bad.code, bad.out) == (1, "")
    assert bad.error_lines[0] == f"mllama: {folder}/bad.jpg: is not a picture: it looks like text"
    assert run_here("caption", str(folder / "drawing.png"), "--sidecar", "--extension", "caption").code == 0
    assert (folder / "drawing.caption").read_text().startswith("I see 3")


def test_keys_and_values_of_pictures_in_8_bits(folder: Path) -> None:
    picture = str(folder / "drawing.png")
    assert run_here("caption", picture, "--image-kv", "fp8").out == run_here("caption", picture).out
    refused = run_here("caption", picture, "--image-kv", "int8")
    assert (refused.code, refused.out) == (2, "")
    assert refused.error_lines == ["mllama: Unknown format of image keys and values 'int8'", "Use fp8."]


def test_float8_where_there_is_none_changes_nothing(folder: Path) -> None:
    picture = str(folder / "drawing.png")
    fast = run_here("caption", picture, "--fast", "--device", "cpu")
    assert (fast.code, fast.out) == (0, run_here("caption", picture, "--device", "cpu").out)
    assert sum("--fast changes nothing here" in line for line in fast.err.splitlines()) == 1
    refused = run_here("caption", picture, "--fast", "--exact")
    assert (refused.code, refused.out) == (2, "")
    assert refused.error_lines == ["mllama: --exact and --fast are mutually exclusive", "Leave one of them out."]


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv"])
def test_all_captions_in_one_file(name: str, folder: Path, tmp_path: Path) -> None:
    output, errors = tmp_path / name, tmp_path / "errors.tsv"
    arguments = ("caption", str(folder), "-o", str(output), "--workers", "0", "--errors", str(errors))
    assert run_here(*arguments).code == 3
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file)) if name.endswith("csv") else [json.loads(line) for line in file]
    assert sorted(Path(row["path"]).name for row in rows) == ["bad.jpg", "card.png", "drawing 2.png", "drawing.png"]
    header, line = errors.read_text().splitlines()
    assert header.startswith("# ")
    assert line == f"{folder}/bad.jpg\tis not a picture: it looks like text"
    assert names(folder) == ["bad.jpg", "card.png", "drawing 2.png", "drawing.png"]
    shutil.copy(DATA / "before.png", folder / "bad.jpg")  # repaired
    assert run_here(*arguments).code == 0
    assert errors.read_text() == ""
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file)) if name.endswith("csv") else [json.loads(line) for line in file]
    assert len(rows) == 4
    assert not any(row["error"] for row in rows)


def test_append_adds_once_for_each_finished_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "bad.jpg").unlink()
    (folder / "card.txt").write_text("old\n")
    arguments = ("caption", str(folder), "--existing", "append", "--prefix", "ohwx, ", "--workers", "0")
    for times in (1, 2):
        assert run_here(*arguments).code == 0
        assert (folder / "card.txt").read_text().count("ohwx, ") == times
        result = run_here(*arguments)  # at once: perhaps the process was killed before its end
        assert "within the last minute" in result.err
        assert (folder / "card.txt").read_text().count("ohwx, ") == times
        later = time.time() + 100
        monkeypatch.setattr(time, "time", lambda later=later: later)
    assert (folder / "card.txt").read_text().startswith("old ohwx, ")
    assert (folder / "drawing.txt").read_text().count("ohwx, ") == 2


def test_failures_keep_a_run_open_so_that_nothing_is_added_twice(folder: Path) -> None:
    arguments = ("caption", str(folder), "--existing", "append", "--workers", "0")
    assert run_here(*arguments).code == 3
    assert run_here(*arguments).code == 3
    assert (folder / "card.txt").read_text().count("HELLO") == 1


def test_pictures_that_differ_in_their_ending_alone(folder: Path) -> None:
    Image.open(folder / "card.png").convert("RGB").save(folder / "drawing.jpg")
    result = run_here("caption", str(folder), "--workers", "0")
    assert "2 pictures differ only in their extension" in result.err
    assert "HELLO" in (folder / "drawing.jpg.txt").read_text()
    assert "3 red circles" in (folder / "drawing.png.txt").read_text()
    assert not (folder / "drawing.txt").exists()


def test_fail_fast_stops_at_the_first(folder: Path) -> None:
    result = run_here("caption", str(folder), "--fail-fast", "--workers", "0", "--batch-size", "1")
    assert result.code in (1, 3)
    assert "failed 1" in result.err
    assert not (folder / "drawing.txt").exists(), "bad.jpg comes first"
    assert not [name for name in names(folder) if name.startswith(".")]
