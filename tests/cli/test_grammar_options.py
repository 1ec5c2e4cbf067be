"""Answers with a form: --schema, --json-mode, --choice and --regex of chat and caption."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from tests.console import run_here

DATA = Path(__file__).parents[1] / "data"
KIND = json.dumps(
    {
        "type": "object",
        "properties": {
            "kind": {"enum": ["star", "ring"]},
            "n": {"type": "integer", "minimum": 0, "maximum": 9},
            "path": {"type": "array", "items": {"const": "a"}, "maxItems": 1},
        },
        "required": ["kind", "n", "path"],
    }
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        shutil.copy(DATA / "drawing.png", tmp_path / f"{name}.png")
    return tmp_path


def test_a_schema_in_each_of_its_forms(tmp_path: Path) -> None:
    (tmp_path / "kind.json").write_text(KIND)
    for schema in (KIND, str(tmp_path / "kind.json")):
        result = run_here("chat", "-m", "sketch", "--schema", schema, "Hello")
        assert result.code == 0
        assert json.loads(result.out)["kind"] in ("star", "ring")
    result = run_here("chat", "-m", "sketch", "--schema", "yes bool, no bool", "Hello")
    assert list(json.loads(result.out)) == ["yes", "no"]


def test_patterns_and_choices() -> None:
    assert re.fullmatch("[A-C]{2}-[0-9]\n", run_here("chat", "-m", "sketch", "--regex", "[A-C]{2}-[0-9]", "Hello").out)
    result = run_here("chat", "-m", "sketch", "--choice", "red ring", "--choice", "blue star", "--json", "Hello")
    answer = json.loads(result.out)
    assert answer["text"] in ("red ring", "blue star")
    assert set(answer["probabilities"]) == {"red ring", "blue star"}
    assert sum(answer["probabilities"].values()) == pytest.approx(1)


def test_a_cut_answer_fails_with_a_line_and_is_still_printed() -> None:
    result = run_here("chat", "-m", "sketch", "--schema", "name", "--max-tokens", "4", "Hello")
    assert result.code == 1
    assert result.out.startswith('{"')
    assert "was cut at 4 tokens, so it is not valid JSON" in result.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--schema", '{"properties": {"a": {"not": {}}}}'], "The schema's not at #/properties/a cannot be enforced"),
        (["--schema", "{"], "The schema is not valid JSON"),
        (["--schema", "missing.json"], "missing.json cannot be read"),
        (["--schema", "a strr"], "type that does not exist"),
        (["--regex", "(a"], "unclosed group"),
        (["--regex", "a", "--choice", "b"], "--choice and --regex both say"),
        (["--choice", "a", "--choice", "a"], "there twice"),
    ],
)
@pytest.mark.parametrize("command", ["chat", "caption"])
def test_what_cannot_be_enforced_is_a_usage_error(command: str, options: list[str], words: str) -> None:
    result = run_here(command, "-m", "sketch", *options, str(DATA / "drawing.png"))
    assert result.code == 2
    assert words in result.err


def test_an_answer_that_begins_otherwise_is_refused() -> None:
    result = run_here("chat", "-m", "sketch", "--choice", "red", "--prefill", "blue", "Hello")
    assert result.code == 2
    assert "cannot begin with 'blue'" in result.err


def test_captions_are_json_files_columns_and_objects(folder: Path) -> None:
    assert run_here("caption", "-m", "sketch", str(folder), "--schema", KIND).code == 0
    said = json.loads((folder / "one.json").read_text())
    for name in ("all.csv", "all.jsonl"):
        for done in ("Captioned 2", "skipped 2"):
            result = run_here("caption", "-m", "sketch", str(folder), "--schema", KIND, "-o", str(folder / name))
            assert done in result.err
    with (folder / "all.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["kind"], row["n"], json.loads(row["fields.path"])) for row in rows] == [
        (said["kind"], str(said["n"]), said["path"])
    ] * 2
    lines = (folder / "all.jsonl").read_text().splitlines()
    assert [json.loads(line)["fields"] for line in lines] == [said] * 2


def test_a_cut_caption_is_a_failed_row(folder: Path) -> None:
    result = run_here(
        "caption", "-m", "sketch", str(folder), "--schema", "name", "--max-tokens", "3", "-o", str(folder / "all.jsonl")
    )
    assert result.code == 1
    rows = [json.loads(line) for line in (folder / "all.jsonl").read_text().splitlines()]
    assert all("cut at 3 tokens" in row["error"] and row["fields"] is None for row in rows)
    assert len(rows) == 2


def test_choices_classify_with_probabilities(folder: Path) -> None:
    choices = ["--choice", "star", "--choice", "ring"]
    result = run_here("caption", "-m", "sketch", str(folder), *choices, "--json", "--prompt", "Which shape is this?")
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert len(rows) == 2
    assert all(sum(row["probabilities"].values()) == pytest.approx(1) for row in rows)
    assert (folder / "one.txt").read_text().strip() in ("star", "ring")


@pytest.mark.parametrize("options", [["--strip"], ["--prefix", "x"], ["--existing", "append"], ["--style", "tags"]])
def test_options_that_would_break_json_are_refused(folder: Path, options: list[str]) -> None:
    assert run_here("caption", "-m", "sketch", str(folder), "--json-mode", *options).code == 2
