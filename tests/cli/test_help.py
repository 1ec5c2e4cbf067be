"""What `--help` of each command says, on a terminal of 80 columns."""

import re
from typing import Any

import pytest
import typer

from mllama_cli.cli.app import COMMANDS, app
from tests.console import run_here


def all_commands() -> dict[str, Any]:
    """Return each command by the words with which it is called; "" is the program itself."""
    found: dict[str, Any] = {"": typer.main.get_command(app)}
    for lazy in COMMANDS:
        if not lazy.hidden:
            command = lazy.load()
            found[lazy.name] = command
            subcommands = getattr(command, "commands", {})
            found |= {f"{lazy.name} {name}": each for name, each in subcommands.items() if not each.hidden}
    return found


ALL = all_commands()
COMMAND_LINES = tuple(ALL)


def help_of(line: str) -> str:
    """Return what `--help` of a command prints."""
    result = run_here(*line.split(), "--help")
    assert (result.code, result.err) == (0, "")
    return result.out


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_help_fits_80_columns_and_is_not_cut(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = help_of(line)
    assert all(len(each) <= 80 for each in shown.splitlines())
    assert not any(each.endswith(("...", "…")) for each in shown.splitlines() if not each.startswith("Usage:"))
    for parameter in ALL[line].params:
        assert squeezed(parameter.help or "").removesuffix(".") in squeezed(shown)


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_every_option_and_argument_is_explained_in_a_sentence(line: str) -> None:
    for parameter in ALL[line].params:
        assert re.fullmatch(r"\S.+\.", parameter.help or "", re.DOTALL), (parameter.name, parameter.help)


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_every_default_is_shown_once(line: str) -> None:
    shown = help_of(line)
    for parameter in ALL[line].params:
        if parameter.param_type_name == "option" and parameter.default:
            (row,) = rows(shown, parameter)
            assert row.count(f"default: {parameter.default}") == 1, row
    assert ")(default" not in squeezed(shown)


def test_commands_and_options_are_grouped() -> None:
    titles = [each for each in help_of("").splitlines() if each.endswith(":")]
    assert titles == ["Ask:", "Models:", "Running engines:", "Chats, settings and speed:", "Options:"]
    for line in ("chat", "caption", "serve"):
        sections = help_of(line).split("\n\n")
        assert not any(section.startswith("Options:") for section in sections), "each option has a more telling group"


def squeezed(text: str) -> str:
    """Return a text without white space, as its lines may be broken anywhere."""
    return "".join(text.split())


def rows(shown: str, parameter: Any) -> list[str]:
    """Return the rows of a help text about an option, each on one line."""
    found = []
    for row in shown.split("\n  -")[1:]:
        text = " ".join(f"-{row}".split("\n\n")[0].split())
        if any(text.startswith((f"{opt} ", f"{opt},")) or f", {opt} " in text for opt in parameter.opts):
            found.append(text)
    return found
