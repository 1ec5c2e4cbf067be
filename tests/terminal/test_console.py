"""What names, models and servers may put on the screen: nothing but text on a line of its own."""

import pytest
from rich.table import Table
from rich.text import Text

from mllama_cli.core.text import MAX_LINE
from mllama_cli.terminal.console import PIPED_WIDTH, Terminal
from tests.console import Stream

HOSTILE = {
    "title": "\x1b]0;PWN\x1b\\",
    "clipboard": "\x1b]52;c;cm0gLXJm\x07",
    "C1": "\x9b31mred\x9d0;PWN\x9c",
    "cursor": "a\x1b[2A\x1b[2Kmllama: all is well",
    "line feed": "a\nb\nmllama: all is well",
    "carriage return": "a\rmllama: all is well",
    "other line ends": "a\x85mllama: all\u2028mllama: is\u2029mllama: well\x0b\x0c\x1c\x1d\x1e",
    "backwards": "\u202egnp.exe",
    "surrogate": "a\udc80b",
    "endless": "x" * 1_000_000,
    "many lines": "y\n" * 100_000,
    "markup": "[bold]:smile:[/bold]",
}


class Screen:
    def __init__(self, *, tty: bool) -> None:
        self.out, self.err = Stream(tty=tty), Stream(tty=tty)
        self.terminal = Terminal(Stream(tty=tty), self.out, self.err)


@pytest.fixture(autouse=True)
def colourless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave every escape sequence in the output to the samples."""
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")  # without which a dumb terminal has 80 columns


def assert_harmless(shown: str, *, lines: int | None, limit: int = MAX_LINE) -> None:
    assert not [char for char in shown if char != "\n" and (ord(char) < 32 or 127 <= ord(char) < 160)]
    assert not {"\u2028", "\u2029", "\u202e"} & set(shown)
    if lines is not None:
        assert shown.count("\n") == lines == len(shown.splitlines())
        assert all(len(line.rstrip()) <= limit for line in shown.splitlines())


@pytest.mark.parametrize("sample", HOSTILE)
@pytest.mark.parametrize("tty", [False, True])
def test_an_error_is_a_line_and_its_hint_another(sample: str, tty: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # a narrower terminal wraps the line
    screen = Screen(tty=tty)
    screen.terminal.error(HOSTILE[sample], HOSTILE[sample])
    shown = screen.err.text()
    assert_harmless(shown, lines=2)
    assert [line.startswith("mllama: ") for line in shown.splitlines()] == [True, False]


@pytest.mark.parametrize("sample", HOSTILE)
@pytest.mark.parametrize("tty", [False, True])
def test_a_note_is_one_line(sample: str, tty: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # a narrower terminal wraps the line
    screen = Screen(tty=tty)
    screen.terminal.note(f"Deleted {HOSTILE[sample]}.")
    assert_harmless(screen.err.text(), lines=1)


@pytest.mark.parametrize("sample", HOSTILE)
@pytest.mark.parametrize("tty", [False, True])
def test_the_cells_of_a_table(sample: str, tty: bool) -> None:
    screen = Screen(tty=tty)
    table = Table(box=None)
    table.add_column("NAME", overflow="fold")
    table.add_row(HOSTILE[sample])
    screen.terminal.out.print(table)
    assert_harmless(screen.out.text(), lines=None if tty else 2, limit=PIPED_WIDTH // 2 + 2)


@pytest.mark.parametrize("sample", HOSTILE)
def test_texts_with_styles(sample: str) -> None:
    screen = Screen(tty=True)
    screen.terminal.err.print(Text(HOSTILE[sample][:1000], style="bold"))
    shown = screen.err.text()
    assert "\x1b" not in shown
    assert "\x9b" not in shown


@pytest.mark.parametrize("sample", HOSTILE)
def test_a_result_is_clean_on_a_terminal_and_whole_in_a_pipe(sample: str) -> None:
    screen, pipe = Screen(tty=True), Screen(tty=False)
    for each in (screen, pipe):
        each.terminal.result(f"{HOSTILE[sample]}\n")
    assert "\x1b" not in screen.out.text()
    assert "\x9b" not in screen.out.text()
    assert pipe.out.text() == f"{HOSTILE[sample]}\n".replace("\udc80", "\ufffd")


def test_the_end_of_a_long_line_is_kept() -> None:
    screen = Screen(tty=False)
    screen.terminal.error(f"{'folder/' * 1000}photo.png cannot be read")
    assert "characters" in screen.err.text()
    assert screen.err.text().endswith("photo.png cannot be read\n")


def test_passwords_stay_out_of_notes_too() -> None:
    screen = Screen(tty=False)
    screen.terminal.note("Fetching http://bob:hunter2@host/a.png")
    assert screen.err.text() == "Fetching http://***@host/a.png\n"
