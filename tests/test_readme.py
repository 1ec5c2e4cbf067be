"""Check README and CONTRIBUTING against the code: names, files, options and the library."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mllama_cli.cli.common import BUILT_IN_NOTE
from mllama_cli.sketch import evaluate
from tests.checkpoints import make_checkpoint
from tests.console import run_here, run_script

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_library_in_ten_lines_runs_as_written(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.strip().splitlines()) <= 10
    model = make_checkpoint(tmp_path / "model")
    (tmp_path / "photo.jpg").write_bytes((ROOT / "tests/data/sideways.jpg").read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", code.replace('"11b"', repr(str(model))).replace("seed=1)", "seed=1, max_tokens=9)")],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout


COMMANDS = re.sub(r"`python[^`]*tests[./]benchmarks[^`]*`", "", README)
"""The README without the commands of benchmarks."""


@pytest.mark.parametrize("option", sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", COMMANDS))))
def test_every_option_that_the_readme_names_exists(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    commands = (
        "chat",
        "caption",
        "serve",
        "quantize",
        "import",
        "bench",
        "download",
        "list",
        "show",
        "rm",
        *(f"history {name}" for name in ("list", "export", "rm")),
    )
    help_texts = (evaluate.parser().format_help(), *(run_here(*command.split(), "--help").out for command in commands))
    assert any(re.search(rf"{option}\b", text) for text in help_texts)


def test_the_first_command_says_what_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLLAMA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    found = re.search(r"&&\n\.venv/bin/mllama (chat [^\n]*)\n```\n\n```\n(.*?)```", README, re.DOTALL)
    assert found
    result = run_script(*shlex.split(found[1].replace("tests/data", str(ROOT / "tests/data"))))
    assert result.code == 0
    # On a terminal the built-in model is announced.
    assert f"{BUILT_IN_NOTE}\n{result.err}{result.out}" == found[2]


ROOMS = "|".join(path.parent.name for path in (ROOT / "mllama_cli").glob("*/__init__.py"))


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_file_that_a_document_names_exists(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    named = re.findall(rf"`((?:mllama_cli|tests|\.ci|{ROOMS})/[\w/.]*)`", text)
    assert len(named) > 10
    for path in named:
        assert (ROOT / path).exists() or (ROOT / "mllama_cli" / path).exists(), path


def test_the_readmes_floors_are_those_of_the_import_rules() -> None:
    """The contract has an extra line where a room is directly above another on the same floor."""
    documented = re.findall(r"^\| (\d) \| `(\w+)/` \|", README, re.MULTILINE)
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    floors = [set(re.findall(r"\w+", line)) for line in rules[0]["layers"] if "sketch" not in line]
    assert {room for _, room in documented} == set().union(*floors)
    by_height = {room: len(floors) - index for index, rooms in enumerate(floors) for room in rooms}
    for floor, room in documented:
        for other_floor, other in documented:
            assert floor <= other_floor or by_height[room] > by_height[other], (room, other)


def test_the_docstring_shown_to_contributors_is_one_of_ours() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    assert example in (ROOT / "mllama_cli/processing/canvas.py").read_text(encoding="utf-8")


def test_every_exit_code_is_documented() -> None:
    from mllama_cli.cli.common import ExitStatus

    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    assert {status.value for status in ExitStatus} <= documented
