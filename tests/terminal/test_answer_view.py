"""The status line."""

from rich.table import Table

from mllama_cli.core.events import EncodingImage, Event
from mllama_cli.terminal.answer_view import StatusLine
from mllama_cli.terminal.console import Terminal
from tests.console import Stream


def shown(*events: Event, screen: bool = True) -> str:
    terminal = Terminal(Stream(), Stream(), Stream(tty=screen))
    with StatusLine(terminal) as status:
        for event in events:
            status.event(event)
            if status._status is not None:
                status._status._live.refresh()
    assert isinstance(terminal.stderr, Stream)
    return terminal.stderr.text()


def test_a_picture_that_takes_long_has_a_bar() -> None:
    text = shown(EncodingImage(1, 1, 0, 40), EncodingImage(1, 1, 10, 40), EncodingImage(1, 1, 40, 40))
    start, rest = text.split("25%")
    assert "Looking at the image" in start
    assert "━" in start
    assert "100%" in rest
    assert "Looking at image 2 of 3" in shown(EncodingImage(2, 3, 1, 40))


def test_nothing_of_it_reaches_a_pipe() -> None:
    assert shown(EncodingImage(1, 1, 10, 40), screen=False) == ""


def test_names_that_look_like_markup_or_emoji_are_printed_as_they_are() -> None:
    name = "[/a]:cat:[bold]"
    terminal = Terminal(Stream(), Stream(), Stream(tty=True))
    with StatusLine(terminal) as status:
        status.show(f"Fetching {name}")
    table = Table()
    table.add_row(name)
    terminal.out.print(table)
    terminal.note(name)
    terminal.error(name, name)
    assert isinstance(terminal.stdout, Stream)
    assert isinstance(terminal.stderr, Stream)
    assert name in terminal.stdout.text()
    assert terminal.stderr.text().count(name) >= 4
