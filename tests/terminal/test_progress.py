"""How a download's progress looks: a bar on a terminal, plain lines elsewhere."""

import time

import pytest

from mllama_cli.core.events import DownloadProgress
from mllama_cli.terminal import progress
from mllama_cli.terminal.console import Terminal
from mllama_cli.terminal.progress import DownloadView
from tests.console import Stream

GB = 10**9


def shown(monkeypatch: pytest.MonkeyPatch, tty: bool, *done: int, step: float = 6.0) -> str:
    """What stderr gets when a download of 20 GB is that far, ``step`` seconds apart."""
    clock = iter(range(10_000))
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0] if next(clock) >= 0 else 0.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    streams = Stream(), Stream(), Stream(tty=tty)
    with DownloadView(Terminal(*streams), "11b") as view:
        for count in done:
            view.event(DownloadProgress(count, 20 * GB, "model.safetensors"))
            now[0] += step
    assert streams[1].text() == ""
    return streams[2].text()


def test_lines_say_how_much_how_fast_and_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, False, 8 * GB, 11 * GB, 14 * GB, 20 * GB).splitlines()
    assert lines == [
        "Downloading 11b: 8.0 GB of 20.0 GB (40%)",
        "Downloading 11b: 11.0 GB of 20.0 GB (55%), 500.0 MB/s, 0:18 left",
        "Downloading 11b: 14.0 GB of 20.0 GB (70%), 500.0 MB/s, 0:12 left",
    ]


def test_lines_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, False, *range(0, 10 * GB, GB // 10), step=0.1).splitlines()
    assert len(lines) == 1 + int(10 / progress.PROGRESS_LINE_SECONDS) - 1


@pytest.mark.parametrize("tty", [False, True])
def test_a_complete_model_shows_nothing(monkeypatch: pytest.MonkeyPatch, tty: bool) -> None:
    assert shown(monkeypatch, tty, 20 * GB, 20 * GB) == ""


def test_a_stalled_line_promises_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, False, GB, GB).splitlines()[-1] == "Downloading 11b: 1.0 GB of 20.0 GB (5%)"


def test_terminal_gets_a_bar_that_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, True, 8 * GB, 11 * GB)
    assert "11b" in text
    assert "/20.0 GB" in text
    assert text.rstrip().endswith("\x1b[2K")  # the bar's line is wiped
