"""Make docs/mllama.1, the man page, from the commands' own help and the tables of docs/settings.md and docs/json.md.

    python .github/man.py

The wheel installs it as share/man/man1/mllama.1.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mllama_cli.cli.app import COMMANDS, app  # noqa: E402
from mllama_cli.core.version import __version__  # noqa: E402

PAGE = ROOT / "docs" / "mllama.1"


def man_page() -> str:
    """Return the page in roff."""
    program = typer.main.get_command(app)
    lines = [
        f'.TH MLLAMA 1 "" "mllama {__version__}" "User Commands"',
        ".SH NAME",
        r"mllama \- Llama 3.2 Vision for your terminal, scripts and programs",
        ".SH SYNOPSIS",
        r"\fBmllama\fR COMMAND [OPTIONS] [ARGUMENTS]",
        ".SH DESCRIPTION",
        *paragraphs(str(program.help)),
        *paragraphs(str(program.epilog)),
        ".SH COMMANDS",
    ]
    for name, command in commands():
        lines += described(name, command)
    lines += [".SH ENVIRONMENT", *table("settings.md", "Environment variables")]
    lines += [".SH EXIT STATUS", *table("json.md", "Exit codes")]
    return "\n".join(lines) + "\n"


def commands() -> Iterator[tuple[str, Any]]:
    """Yield the words with which each command is called, and the command; those of a group instead of the group."""
    for lazy in COMMANDS:
        if not lazy.hidden:
            command = lazy.load()
            for name, each in getattr(command, "commands", {"": command}).items():
                if not each.hidden:
                    yield f"{lazy.name} {name}".strip(), each


def described(name: str, command: Any) -> Iterator[str]:
    """Yield the lines about a command: its usage, its help, and each argument and option."""
    context = command.context_class(command, info_name=f"mllama {name}")
    usage = " ".join(command.collect_usage_pieces(context))
    yield f'.SS "mllama {name} {escaped(usage)}"'
    yield from paragraphs(str(command.help))
    for title, rows in command.help_sections(context).items():
        yield ".PP"
        yield rf"\fB{escaped(title)}\fR"
        for flags, help_text in rows:
            if "--help" not in flags:
                yield ".TP"
                yield rf"\fB{escaped(flags)}\fR"
                yield escaped(help_text)


def paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.strip().split("\n\n"):
        yield ".PP"
        yield escaped(" ".join(paragraph.split()))


def table(page: str, title: str) -> Iterator[str]:
    """Yield the rows of the table under a heading of a page of docs/."""
    section = (ROOT / "docs" / page).read_text(encoding="utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = section.partition("---|\n")[2]
    for name, meaning in re.findall(r"^\| (.+?) \| (.+) \|$", rows, re.MULTILINE):
        yield ".TP"
        yield rf"\fB{escaped(plain(name))}\fR"
        yield escaped(plain(meaning))


def plain(markdown: str) -> str:
    """Return the text of a table's cell without backquotes and links.

    >>> plain("`chat`: see [the chat](chat.md)")
    'chat: see the chat'
    """
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", markdown).replace("`", "")


def escaped(text: str) -> str:
    """Return text as roff shows it unchanged: backslashes, hyphens, and a dot or quote at the line's beginning."""
    return re.sub(r"^(?=[.'])", r"\\&", text.replace("\\", r"\e").replace("-", r"\-").replace('"', r"\(dq"))


if __name__ == "__main__":
    PAGE.write_text(man_page(), encoding="utf-8")
