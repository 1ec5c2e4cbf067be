"""Tables on screens of several widths."""

import re
from pathlib import Path

import pytest

from mllama_cli.terminal.console import Terminal
from mllama_cli.terminal.tables import print_facts, print_table
from tests.console import Stream

META = "meta-llama/Llama-3.2-11B-Vision-Instruct"


def plain(stream: Stream) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", stream.text())


def screen() -> tuple[Terminal, Stream]:
    stream = Stream(tty=True)
    return Terminal(stdin=Stream(), stdout=stream, stderr=Stream()), stream


@pytest.mark.parametrize("columns", [60, 80, 100])
@pytest.mark.parametrize("name", ["short", META, "日本語" * 6])
def test_only_wrapped_columns_shrink_and_only_at_blanks(
    columns: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    terminal, stream = screen()
    print_table(
        terminal, ("NAME", "SIZE", "KIND"), [(name, "21.3 GB", "instruct, quantized to 4 bits")],
        right=("SIZE",), wrapped=("KIND",),
    )  # fmt: skip
    shown = plain(stream)
    assert name in shown
    assert "21.3 GB" in shown
    assert {"instruct,", "quantized", "bits"} <= set(shown.split())


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_labels_are_whole_and_a_path_is_on_one_line(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    terminal, stream = screen()
    folder = Path("/home/someone") / ("long" * 20) / "snapshots"
    print_facts(terminal, [("already cached", "1.2 GB"), ("memory to run", "8 GB and more words"), ("folder", folder)])
    lines = [line.strip() for line in plain(stream).splitlines()]
    assert any(re.match(r"already cached\s+1.2", line) for line in lines)
    assert str(folder) in lines


@pytest.mark.parametrize("tty", [False, True])
def test_a_cell_cannot_forge_a_line(tty: bool) -> None:
    out = Stream(tty=tty)
    terminal = Terminal(Stream(), out, Stream())
    print_table(terminal, ("NAME", "SIZE"), [("a\nmllama: well\x1b[2J", "1 GB")])
    print_facts(terminal, [("licence", "a\nmllama: well\x1b[2J")])
    assert out.text().count("\n") == 3
    assert "[2J" in out.text()
    assert "\x1b[2J" not in out.text()


def test_a_piped_table_has_no_blanks_at_the_ends_of_lines() -> None:
    stream = Stream()
    rows = [("a", "1 MB", ""), ("b" * 300, "20 GB", "a long explanation"), ("c", "2 kB", "short")]
    print_table(Terminal(Stream(), stream, Stream()), ("NAME", "SIZE", "KIND"), rows, right=("SIZE",))
    lines = stream.text().split("\n")
    assert [line.rstrip() for line in lines] == lines
    assert [line.split()[:1] for line in lines] == [["NAME"], ["a"], ["b" * 300], ["c"], []]
