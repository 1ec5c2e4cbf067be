"""How a download's progress looks: a bar on a terminal, nothing elsewhere."""

import re

import pytest

from mllama_cli.core.events import DownloadProgress
from mllama_cli.terminal.console import Terminal
from mllama_cli.terminal.progress import DownloadView
from tests.console import Stream

GB = 10**9


def shown(monkeypatch: pytest.MonkeyPatch, tty: bool, *done: int, name: str = "11b", columns: int = 120) -> str:
    """Return what stderr gets from a download of 20 GB that is that far, and further."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.delenv("NO_COLOR", raising=False)
    streams = Stream(), Stream(), Stream(tty=tty)
    with DownloadView(Terminal(*streams), name) as view:
        for count in done:
            view.event(DownloadProgress(count, 20 * GB, "model.safetensors"))
    assert streams[1].text() == ""
    return streams[2].text()


def test_without_a_terminal_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, False, 8 * GB, 11 * GB, 14 * GB, 20 * GB) == ""


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("name", ["11b", "unsloth/Llama-3.2-11B-Vision-Instruct-" + "x" * 40])
def test_the_bar_is_one_line_whatever_the_name(monkeypatch: pytest.MonkeyPatch, columns: int, name: str) -> None:
    text = shown(monkeypatch, True, 8 * GB, 11 * GB, name=name, columns=columns)
    assert "/20.0 GB" in text
    frames = [
        line for line in re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", text).replace("\r", "\n").splitlines() if line.strip()
    ]
    assert all("/20.0 GB" in frame and len(frame) <= columns for frame in frames)


@pytest.mark.parametrize("tty", [False, True])
def test_a_complete_model_shows_nothing(monkeypatch: pytest.MonkeyPatch, tty: bool) -> None:
    assert shown(monkeypatch, tty, 20 * GB, 20 * GB) == ""


def test_terminal_gets_a_bar_that_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, True, 8 * GB, 11 * GB)
    assert "11b" in text
    assert "/20.0 GB" in text
    assert text.rstrip().endswith("\x1b[2K")  # the bar's line is wiped
