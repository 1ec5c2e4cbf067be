"""Check the README, the pages of docs/ and CONTRIBUTING.md against the code: names, files, options and links."""

import re
import tomllib
from pathlib import Path

import pytest

from mllama_cli.cli.common import ExitStatus
from mllama_cli.core import errors
from mllama_cli.serving.errors import STATUSES
from mllama_cli.sketch import evaluate
from tests.cli.test_help import ALL, help_of
from tests.conftest import ROOT
from tests.docs.pages import DOCS, PAGES, anchors, read

DOCUMENTS = [*PAGES.values(), *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"))]
ROOMS = "|".join(path.parent.name for path in (ROOT / "mllama_cli").glob("*/__init__.py"))
OTHER_PROGRAMS = r"python|pytest|pip|torchrun|vllm|hf|\.venv"


def options(page: str) -> set[str]:
    """Return the options of mllama that a page names, not those of other programs."""
    before, _, vllm = read(page).partition("| `vllm serve` |")
    text = before + re.sub(r"^\|[^|]*\|", "|", vllm, flags=re.MULTILINE)  # its first column is vLLM's
    text = re.sub(rf"^(?:{OTHER_PROGRAMS})\b.*$|`(?:{OTHER_PROGRAMS})\b[^`]*`", "", text, flags=re.MULTILINE)
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))


@pytest.fixture(scope="module")
def known() -> set[str]:
    texts = [evaluate.parser().format_help(), *(help_of(line) for line in ALL)]
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(texts)))


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_a_page_names_exists(page: str, known: set[str]) -> None:
    assert options(page) - known == set()


def test_every_option_is_documented() -> None:
    letters = set(re.findall(r"(?<![\w-])-\w\b", "".join(map(read, PAGES))))
    named = letters.union(*map(options, PAGES))
    for line, command in ALL.items():
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name not in ("help", "version"):
                assert named.intersection(parameter.opts), f"{line}: {parameter.opts}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_every_file_that_a_document_names_exists(document: Path) -> None:
    named = re.findall(rf"`((?:mllama_cli|tests|docs|\.ci|\.github|{ROOMS})/[\w/.]*)`", document.read_text("utf-8"))
    for path in named:
        assert (ROOT / path).exists() or (ROOT / "mllama_cli" / path).exists(), path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", document.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        target, _, anchor = "".join(link).partition("#")
        if ":" in target or anchor.startswith("mllama_cli."):
            continue
        file = (document.parent / target).resolve() if target else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), (target, anchor)
        assert document.parent != DOCS or file.is_relative_to(DOCS), f"{target} is not in the site"


def test_every_page_is_in_the_menu_and_reached_from_the_readme() -> None:
    menu = set(re.findall(r": (\w[\w-]*)\.md$", (ROOT / ".github/mkdocs.yml").read_text("utf-8"), re.MULTILINE))
    assert menu == set(PAGES) - {"README"}
    for page in menu - {"index", "contributing"}:  # the README is its own index, and has CONTRIBUTING.md
        assert f"(docs/{page}.md)" in read("README")
        assert f"({page}.md)" in read("index")


def test_the_readme_is_read_in_two_minutes() -> None:
    assert len(read("README").splitlines()) <= 130


def test_the_floors_are_those_of_the_import_rules() -> None:
    """The contract has an extra line where a room is directly above another on the same floor."""
    documented = re.findall(r"^\| (\d) \| `(\w+)/` \|", read("architecture"), re.MULTILINE)
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    floors = [set(re.findall(r"\w+", line)) for line in rules[0]["layers"] if "sketch" not in line]
    assert {room for _, room in documented} == set().union(*floors)
    by_height = {room: len(floors) - index for index, rooms in enumerate(floors) for room in rooms}
    for floor, room in documented:
        for other_floor, other in documented:
            assert floor <= other_floor or by_height[room] > by_height[other], (room, other)
    lines = re.findall(r"^\| (`.*?) \|", read("architecture").partition("Inside `engine/`")[2], re.MULTILINE)
    assert [set(re.findall(r"`(\w+)", line)) for line in lines] == [
        set(re.findall(r"\w+", line)) for line in rules[1]["layers"]
    ]


@pytest.mark.parametrize("page", ["json", "captions"])
def test_every_exit_code_is_documented(page: str) -> None:
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", read(page), re.MULTILINE)}
    assert documented == {status.value for status in ExitStatus}


def test_every_status_of_the_server_is_documented() -> None:
    documented = {
        int(code)
        for row in re.findall(r"^\| ([45]\d\d.*?) \|", read("server"), re.MULTILINE)
        for code in row.split(", ")
    }
    assert documented >= {status for _, status in STATUSES} | {500}


def test_every_kind_of_error_has_its_section() -> None:
    kinds = {each("x").kind for each in vars(errors).values() if isinstance(each, type)}
    assert set(re.findall(r"^## (\w+)$", read("troubleshooting"), re.MULTILINE)) == kinds


def test_every_environment_variable_is_documented() -> None:
    variables = set(re.findall(r"^\| (`[A-Z].*?) \|", read("settings"), re.MULTILINE))
    documented = {name for row in variables for name in re.findall(r"`(\w+)`", row) if name.startswith("MLLAMA_")}
    sources = (file for file in (ROOT / "mllama_cli").rglob("*.py") if "sketch" not in file.parts)
    read_by_us = set().union(*(re.findall(r"\"(MLLAMA_[A-Z_]+)\"", file.read_text("utf-8")) for file in sources))
    assert documented == read_by_us


def test_the_docstring_shown_to_contributors_is_one_of_ours() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    assert example in (ROOT / "mllama_cli/processing/canvas.py").read_text(encoding="utf-8")
