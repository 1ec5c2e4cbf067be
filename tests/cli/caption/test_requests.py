"""What `mllama caption` is asked to do: lists, prompts, and requests that it refuses."""

import json
import os
import shutil
from pathlib import Path

import pytest

from mllama_cli.cli.caption_request import (
    CaptionBatching,
    CaptionDisplay,
    CaptionInput,
    CaptionOutput,
    CaptionPrompt,
    CaptionRequest,
)
from mllama_cli.cli.grammar_options import GrammarOptions
from mllama_cli.cli.options import BatchComputeOptions, SamplingOptions, SharingOptions
from tests.cli.caption.folders import names
from tests.console import run_here, run_script


def test_nothing_to_do_needs_no_model(folder: Path) -> None:
    (folder / "bad.jpg").unlink()
    assert run_here("caption", str(folder)).code == 0
    (path,) = run_script("caption", str(folder), "--model", "sketch").error_lines
    assert path == "Captioned 0, skipped 3 (done before)."


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


def test_a_run_s_key_is_the_one_of_earlier_versions() -> None:
    request = CaptionRequest(
        CaptionInput(),
        CaptionPrompt(style="tags", prefix="it's ", strip=True),
        CaptionOutput(existing="append", extension="txt"),
        CaptionDisplay(),
        CaptionBatching(),
        BatchComputeOptions(),
        SharingOptions(),
        SamplingOptions(),
        GrammarOptions(),
    )
    sampling = {"max_tokens": 128, "temperature": 0.5, "stop": ("x",)}
    # As commit 1639ea6 computed it.
    assert request.run_key(("/photos", "None"), "/models/11b None", sampling) == "10ce1ba75f445d07e059b3c199baf05e"


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
