"""What is typed while there is no prompt, in a real pseudo terminal."""

import os
import sys
from collections.abc import Callable, Iterator

import pytest

if sys.platform == "win32":
    pytest.skip("needs a pseudo terminal", allow_module_level=True)

import pty
import termios

from mllama_cli.terminal.console import Terminal
from mllama_cli.terminal.type_ahead import TypeAhead


class Pair:
    """A terminal of this process (``terminal``) and the side of the window (``window``)."""

    def __init__(self) -> None:
        self.window, inside = pty.openpty()
        self.terminal = Terminal(os.fdopen(inside, encoding="utf-8"), os.fdopen(os.dup(inside), "w", encoding="utf-8"))

    def settings(self) -> list[object]:
        return termios.tcgetattr(self.terminal.stdin)

    def type(self, text: str) -> None:
        os.write(self.window, text.encode())


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    # A terminal that is not this process's own has no foreground group.
    monkeypatch.setattr(os, "tcgetpgrp", lambda file: os.getpgrp())
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("COLORFGBG", raising=False)
    made = Pair()
    yield made
    made.terminal.stdin.close()
    made.terminal.stdout.close()
    os.close(made.window)


def test_typed_text_is_kept_unseen_and_enter_stays_enter(pair: Pair) -> None:
    before = pair.settings()
    pair.type("early\r")
    assert b"early" in os.read(pair.window, 100)
    with TypeAhead(pair.terminal) as typed:
        pair.type("and then?\r/copy\r日本")
        assert typed.take() == "early\rand then?\r/copy\r日本"
        assert typed.take() == ""
        os.set_blocking(pair.window, False)
        with pytest.raises(BlockingIOError):
            os.read(pair.window, 100)
    assert pair.settings() == before


def test_without_a_prompt_typed_text_is_left_to_the_shell(pair: Pair) -> None:
    pair.type("early\r")
    os.read(pair.window, 100)
    with TypeAhead(pair.terminal, prompts=False):
        pair.type("late\r")
        os.set_blocking(pair.window, False)
        with pytest.raises(BlockingIOError):
            os.read(pair.window, 100)
    assert os.read(pair.terminal.stdin.fileno(), 100) == b"early\n"
    assert os.read(pair.terminal.stdin.fileno(), 100) == b"late\n"


@pytest.mark.parametrize(
    ("answer", "background"),
    [
        ("\x1b]11;rgb:ffff/ffff/ffff\x1b\\", "light"),
        ("\x1b]11;rgb:0000/0000/0000\x07", "dark"),
        ("\x1b]11;rgb:fd/f6/e3\x07", "light"),
        ("\x1b]11;rgb:0000/2b2b/3636\x1b\\", "dark"),
        ("\x1b]11;rgba:1e1e/1e1e/1e1e/ffff\x1b\\", "dark"),
        ("\x1b]11;rgb:f/f/f\x07", "light"),
        ("", ""),
        ("\x1b]11;nonsense\x07", ""),
    ],
)
def test_the_terminal_says_how_light_its_background_is(pair: Pair, answer: str, background: str) -> None:
    with TypeAhead(pair.terminal) as typed:
        typed.ask_background()
        assert os.read(pair.window, 100) == b"\x1b]11;?\x1b\\"
        pair.type(f"typed{answer} text\r")
        assert typed.background() == background
        if background:
            assert typed.take() == "typed text\r"


@pytest.mark.parametrize(
    ("colours", "background"),
    [("0;15", "light"), ("15;0", "dark"), ("0;default;15", "light"), ("12;8", "dark"), ("0;7", "light"), ("x", "")],
)
def test_without_an_answer_the_environment_counts(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, colours: str, background: str
) -> None:
    monkeypatch.setenv("COLORFGBG", colours)
    with TypeAhead(pair.terminal) as typed:
        typed.ask_background()
        assert typed.background() == background


@pytest.mark.parametrize("term", ["dumb", "linux", ""])
def test_a_terminal_that_would_print_the_question_is_not_asked(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, term: str
) -> None:
    monkeypatch.setenv("TERM", term)
    with TypeAhead(pair.terminal) as typed:
        typed.ask_background()
        assert typed.background() == ""
        os.set_blocking(pair.window, False)
        with pytest.raises(BlockingIOError):
            os.read(pair.window, 100)


def test_without_a_terminal_nothing_happens(make_stream: Callable[[], Terminal]) -> None:
    with TypeAhead(make_stream()) as typed:
        typed.ask_background()
        assert (typed.take(), typed.background()) == ("", "")


@pytest.fixture
def make_stream(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    from tests.console import Stream

    monkeypatch.delenv("COLORFGBG", raising=False)
    return lambda: Terminal(Stream(b"input"), Stream(), Stream())
