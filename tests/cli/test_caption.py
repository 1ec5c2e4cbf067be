"""`mllama caption` with the built-in model, which says what is true of drawings."""

import contextlib
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from mllama_cli.cli.caption_request import (
    CaptionBatching,
    CaptionDisplay,
    CaptionInput,
    CaptionOutput,
    CaptionPrompt,
    CaptionRequest,
)
from mllama_cli.cli.options import ComputeOptions, SamplingOptions
from tests.console import SCRIPT, run_here, run_script
from tests.drawings import bad_files, drawings
from tests.prepared import Prepared, Started

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("home")
    for name in ("MLLAMA_HOME", "XDG_STATE_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(home / name))
    monkeypatch.setenv("MLLAMA_MODEL", "sketch")
    return home


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two drawings, one of them twice, and a file that is not a picture."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    shutil.copy(DATA / "drawing.png", folder / "drawing.png")
    shutil.copy(DATA / "drawing.png", folder / "drawing 2.png")
    shutil.copy(DATA / "card.png", folder / "card.png")
    (folder / "bad.jpg").write_text("no picture")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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


def test_nothing_to_do_needs_no_model(folder: Path) -> None:
    (folder / "bad.jpg").unlink()
    assert run_here("caption", str(folder)).code == 0
    (path,) = run_script("caption", str(folder), "--model", "sketch").error_lines
    assert path == "Captioned 0, skipped 3 (done before)."


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


def test_json_lines_on_stdout_for_a_list_on_stdin(folder: Path) -> None:
    listed = f"{folder}/card.png\0{folder}/drawing.png\0{folder}/gone.png\0"
    result = run_here("caption", "-", "-0", "--output", "-", "-p", "What does it say?", stdin=listed.encode())
    records = {Path(r["path"]).name: r for r in map(json.loads, result.out.splitlines())}
    assert result.code == 3
    assert "HELLO" in records["card.png"]["caption"]
    assert "no such picture" in records["gone.png"]["error"]["message"]
    assert names(folder) == ["bad.jpg", "card.png", "drawing 2.png", "drawing.png"]


@pytest.mark.parametrize("kind", ["thesis", "table", "link", "dangling", "hard link"])
def test_a_list_of_errors_is_not_written_over_another_file(kind: str, folder: Path, tmp_path: Path) -> None:
    errors, victim = tmp_path / "errors.tsv", tmp_path / "victim"
    text = "a.png\ta cat\n" if kind == "table" else "# My thesis\n"
    if kind in ("thesis", "table"):
        errors.write_text(text)
    elif kind == "hard link":
        victim.write_text(text)
        os.link(victim, errors)
    else:
        errors.symlink_to(victim)
        if kind == "link":
            victim.write_text(text)
    result = run_here("caption", str(folder), "--workers", "0", "--errors", str(errors))
    assert (result.code, result.out) == (2, "")
    assert "cannot be written" in result.err
    assert victim.exists() == (kind in ("link", "hard link"))
    if kind != "dangling":
        assert errors.read_text() == text


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


def test_a_run_s_key_is_the_one_of_earlier_versions() -> None:
    request = CaptionRequest(
        CaptionInput(),
        CaptionPrompt(style="tags", prefix="it's ", strip=True),
        CaptionOutput(existing="append", extension="txt"),
        CaptionDisplay(),
        CaptionBatching(),
        ComputeOptions(),
        SamplingOptions(),
    )
    sampling = {"max_tokens": 128, "temperature": 0.5, "stop": ("x",)}
    # As commit 1639ea6 computed it.
    assert request.run_key(("/photos", "None"), "/models/11b None", sampling) == "10ce1ba75f445d07e059b3c199baf05e"


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


def test_prompts_by_style_file_and_variable(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("How many {stem} are there?\n")
    shutil.copy(folder / "drawing.png", folder / "circles.png")
    asked = run_here("caption", str(folder / "circles.png"), "--prompt-file", str(tmp_path / "prompt.txt"))
    assert asked.out == "There are 3 circles.\n"
    detailed = run_here("caption", str(folder / "drawing.png"), "--style", "detailed", "--strip")
    assert detailed.out.startswith("A red circle in the top left")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_list_in_any_encoding_with_a_line_that_is_no_path(folder: Path, tmp_path: Path, encoding: str) -> None:
    paths = tmp_path / "list.txt"
    paths.write_text(f"{folder}/card.png\n{folder}/\0.png\n{folder}/drawing.png\n", encoding=encoding)
    result = run_here("caption", "--files-from", str(paths), "--workers", "0")
    assert (result.code, result.out) == (3, ""), result.err
    assert "cannot contain a NUL" in result.err
    assert {"card.txt", "drawing.txt"} < set(names(folder))


def test_fail_fast_stops_at_the_first(folder: Path) -> None:
    result = run_here("caption", str(folder), "--fail-fast", "--workers", "0", "--batch-size", "1")
    assert result.code in (1, 3)
    assert "failed 1" in result.err
    assert not (folder / "drawing.txt").exists(), "bad.jpg comes first"
    assert not [name for name in names(folder) if name.startswith(".")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to caption"),
        (["nowhere"], "no such picture or folder: nowhere"),
        (["*.gif"], "matches nothing"),
        ([".", "--existing", "replace"], "--existing cannot be 'replace'"),
        ([".", "--style", "poem"], "--style cannot be 'poem'"),
        ([".", "--shard", "3/2"], "--shard must be I/N"),
        ([".", "--shard", "1/²"], "--shard must be I/N"),
        ([".", "--batch-size", "0"], "--batch-size must be auto or"),
        ([".", "--batch-size", "9" * 5000], "--batch-size must be auto or"),
        ([".", "-p", "{nmae}"], "unknown variable {nmae}"),
        ([".", "-p", "a", "--prompt-file", "b"], "both say what is asked"),
        ([".", "--prompt-file", "gone.txt"], "gone.txt cannot be read"),
        ([".", "--prompt-file", "~nosuch/x"], "cannot be read"),
        ([".", "--prompt-file", "/dev/zero"], "neither a file nor a pipe"),
        ([".", "--prompt-file", "card.png"], "card.png is not UTF-8 text"),
        (["--files-from", "/dev/zero"], "neither a file nor a pipe"),
        (["--files-from", "~nosuch/x"], "cannot be read"),
        ([".", "-o", "captions.txt"], "written as .jsonl or .csv"),
        ([".", "-o", "a.csv", "--existing", "append"], "changes caption files"),
        ([".", "-o", "a.csv", "--sidecar"], "two places"),
        ([".", "--extension", ".png"], "would overwrite pictures"),
        ([".", "-0"], "-0 is for a list"),
        (["-"], "stdin is the terminal"),
        ([".", "--errors", "no/such/folder.txt"], "cannot be written"),
        ([".", "--temperature", "-1"], "must be 0 or more"),
        ([".", "-m", "nowhere"], "no model or folder called 'nowhere'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_requests_are_one_clear_line(
    arguments: list[str], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    result = run_here("caption", *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.error_lines[0]
    assert len(result.error_lines) <= 2
    assert not [name for name in names(folder) if name.endswith(".txt")]


@pytest.mark.skipif(os.name != "posix", reason="names of any bytes are POSIX's")
def test_a_name_that_is_not_text_stops_nothing(folder: Path) -> None:
    (folder / "bad.jpg").unlink()
    try:
        (folder / "card.png").rename(folder / os.fsdecode(b"card\xff.png"))
    except OSError:
        pytest.skip("this file system allows only names that are text")
    for options in (("--existing", "append"), ("--existing", "append", "--json", "-p", "{stem}: {existing}?")):
        result = run_script("caption", str(folder), *options, "--workers", "0")
        assert result.code == 0, result.err
        assert "Captioned 3" in result.err
    assert len([json.loads(line) for line in result.out.splitlines()]) == 3
    assert "HELLO" in (folder / os.fsdecode(b"card\xff.txt")).read_text()


def test_a_run_that_cannot_begin_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "captions.csv"
    output.parent.mkdir()
    for bad in (("--temperature", "-1"), ("--errors", "no/such/folder.txt"), ("--device", "tpu")):
        assert run_here("caption", str(folder), "-o", str(output), *bad).code == 2
        assert [path.name for path in output.parent.iterdir() if path != output] == []


def test_shards_together_caption_everything_once(folder: Path) -> None:
    for number in range(6):
        Image.new("RGB", (60 + number, 60), "white").save(folder / f"{number}.png")
    (folder / "bad.jpg").unlink()
    counts = []
    for shard in ("1/2", "2/2"):
        result = run_here("caption", str(folder), "--shard", shard, "--workers", "0", "-p", "Describe this.")
        assert result.code == 0
        counts.append(len(list(folder.glob("*.txt"))))
    assert 0 < counts[0] < 9
    assert counts[1] == 9


@pytest.mark.slow
def test_two_hundred_drawings_and_twenty_bad_files(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    facts = drawings(folder, 200)
    bad = bad_files(folder)
    result = run_script("caption", str(folder), "--errors", str(tmp_path / "errors.tsv"), timeout=280)
    assert result.code == 3
    assert "Captioned 200, failed 20" in result.err
    failed = dict(line.split("\t") for line in (tmp_path / "errors.tsv").read_text().splitlines()[1:])
    assert {Path(path).name for path in failed} == set(bad)
    assert all(reason for reason in failed.values())
    assert not [name for name in bad if (folder / name).with_suffix(".txt").exists()]
    captions = {path.stem: path.read_text() for path in folder.glob("*.txt")}
    assert captions.keys() == facts.keys()
    right = sum(captions[name].strip() == answer for name, answer in facts.items())
    assert right >= 190, f"{right} of 200 say exactly what is drawn"


def start(*arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [str(SCRIPT), "caption", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ}
    )


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills as POSIX does")
@pytest.mark.parametrize("existing", ["skip", "append"])
def test_a_run_that_is_killed_at_any_moment_ends_in_the_same_files(existing: str, tmp_path: Path) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    drawings(calm, 24)
    for name in ("3.txt", "7.txt"):
        (calm / name).write_text("old\n" if existing == "append" else "")
    shutil.copytree(calm, killed)
    options = ("--existing", existing, "--batch-size", "2", "--workers", "1")
    rng = random.Random(5)
    errors = tmp_path / "errors.txt"
    with Prepared() as prepared:

        def begin(folder: Path) -> Started:
            return prepared.start("tests.prepared:command", ("caption", str(folder), *options), os.environ, errors)

        assert begin(calm).wait() == 0, errors.read_text()
        for _ in range(10):
            before = sum(path.stat().st_size for path in killed.glob("*.txt"))
            process = begin(killed)
            end = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < end:  # until it writes, then a moment more
                if sum(path.stat().st_size for path in killed.glob("*.txt")) != before:
                    break
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.15))
            process.kill()
            if process.poll() == 0:
                break
            assert process.poll() == -signal.SIGKILL, errors.read_text()
        else:
            assert begin(killed).wait() == 0, errors.read_text()
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (calm, killed)]
    assert contents[0] == contents[1]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_ctrl_c_keeps_what_is_done_and_says_how_to_resume(tmp_path: Path) -> None:
    drawings(tmp_path, 40)
    process = start(str(tmp_path), "--batch-size", "1")
    end = time.monotonic() + 60
    while not list(tmp_path.glob("*.txt")) and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Run the same command to resume." in err
    assert b"Traceback" not in err
    done = list(tmp_path.glob("*.txt"))
    assert 0 < len(done) < 40
    assert all(path.read_text().endswith(".\n") for path in done)
    assert not [name for name in names(tmp_path) if name.startswith(".")]


@pytest.mark.slow
def test_two_runs_over_one_folder_share_the_work(tmp_path: Path) -> None:
    facts = drawings(tmp_path, 24)
    runs = [start(str(tmp_path), "--existing", "append", "--batch-size", "2") for _ in range(2)]
    outputs = [run.communicate(timeout=120)[1].decode() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    for name, answer in facts.items():
        text = (tmp_path / f"{name}.txt").read_text()
        assert text.count(answer[:6]) == 1, "one caption, not two"
        assert text.endswith(".\n")
    done = [int(output.split("Captioned ")[1].split()[0].rstrip(",.")) for output in outputs]
    assert sum(done) == 24


def small_disk(folder: Path, options: str) -> bool:
    """Mount a small file system there; False where that is not allowed."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
    )
    return done.returncode == 0


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as out, contextlib.suppress(OSError):
        while True:
            out.write(bytes(4096))


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path: Path, folder: Path) -> None:
    disk = tmp_path / "disk"
    if not small_disk(disk, "size=256k"):
        pytest.skip("mounting a small disk is not allowed here")
    try:
        for picture in folder.glob("*.png"):
            shutil.copy(picture, disk)
        (disk / "drawing.txt").write_text("old\n")
        filler = disk / "filler"
        fill(filler)
        result = run_here("caption", str(disk), "--existing", "overwrite", "--workers", "0")
        assert result.code == 1
        assert "No space left on device" in result.err
        assert "run the same command again" in result.err
        assert (disk / "drawing.txt").read_text() == "old\n"
        filler.unlink()
        assert run_here("caption", str(disk), "--existing", "overwrite", "--workers", "0").code == 0
        assert "3 red circles" in (disk / "drawing.txt").read_text()
        assert names(disk) == [
            "card.png", "card.txt", "drawing 2.png", "drawing 2.txt", "drawing.png", "drawing.txt",
        ]  # fmt: skip
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_a_folder_that_may_only_be_read(tmp_path: Path, folder: Path) -> None:
    disk = tmp_path / "disk"
    if not small_disk(disk, "size=1m"):
        pytest.skip("mounting a small disk is not allowed here")
    try:
        shutil.copy(folder / "drawing.png", disk)
        shutil.copy(folder / "card.png", disk)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        result = run_here("caption", str(disk), "--workers", "0")
        assert result.code == 1
        assert result.err.count("Read-only file system") == 2
        assert run_here("caption", str(disk), "-o", str(tmp_path / "captions.jsonl"), "--workers", "0").code == 0
        assert len((tmp_path / "captions.jsonl").read_text().splitlines()) == 2
    finally:
        subprocess.run(["umount", str(disk)], check=True)
