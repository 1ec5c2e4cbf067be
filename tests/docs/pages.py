"""The README and the pages of docs/, as blocks of code and the text around them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tests.conftest import ROOT

DOCS = ROOT / "docs"
PAGES = {"README": ROOT / "README.md"} | {file.stem: file for file in sorted(DOCS.glob("*.md"))}
_BLOCK = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        line: the number of its first line in the page.
        is_run: whether it can run here: it is not marked `<!-- not run: why -->`, installs nothing, and the modules of
            `<!-- needs: module module -->` are installed.
    """

    language: str
    text: str
    line: int
    is_run: bool


def read(page: str) -> str:
    """Return the Markdown of a page."""
    return PAGES[page].read_text(encoding="utf-8")


def blocks(page: str) -> Iterator[Block]:
    """Yield the blocks of a page in order."""
    text = read(page)
    for found in _BLOCK.finditer(text):
        note = found["note"] or ""
        lacks = (
            [name for name in note.removeprefix("needs: ").split() if not find_spec(name)] if "needs: " in note else []
        )
        is_run = not note.startswith("not run: ") and not lacks and ".venv/bin/" not in found["text"]
        yield Block(found["language"], found["text"], text.count("\n", 0, found.start("text")) + 1, is_run)


def commands(block: Block) -> Iterator[str]:
    """Yield the command lines of a bash block; lines that end in a backslash, && or | go on."""
    line = ""
    for each in block.text.splitlines():
        line += each
        if line.endswith("\\"):
            line = line[:-1]
        elif not line.endswith(("&&", "|")):
            if line.strip() and not line.lstrip().startswith("#"):
                yield line
            line = ""


def anchors(file: Path) -> set[str]:
    """Return the addresses of a Markdown file's headings, as GitHub and MkDocs make them."""
    titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
