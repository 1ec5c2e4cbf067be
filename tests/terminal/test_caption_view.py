"""The progress of a captioning run."""

import pytest

from mllama_cli.core.caption_events import BatchSize, Captioned, CaptionRecord, CaptionsPlanned
from mllama_cli.terminal.caption_view import CaptionView
from mllama_cli.terminal.console import Terminal
from tests.console import Stream


def shown(
    monkeypatch: pytest.MonkeyPatch, *, total: int, slots: int, batches: int, seconds: float, tty: bool = True
) -> str:
    """Return what stderr gets from a run whose batches take that long and end all at once."""
    now = [100.0]
    monkeypatch.setattr("mllama_cli.terminal.caption_view.monotonic", lambda: now[0])
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    streams = Stream(), Stream(), Stream(tty=tty)
    with CaptionView(Terminal(*streams)) as view:
        view.event(CaptionsPlanned(total, 0))
        view.event(BatchSize(slots))
        for batch in range(batches):
            now[0] += seconds
            for picture in range(slots):
                view.event(Captioned(CaptionRecord(f"{batch}-{picture}.png", "A cat.", tokens=5)))
    return streams[2].text()


@pytest.mark.parametrize(
    ("total", "slots", "batches", "seconds", "left"),
    [(13, 4, 1, 20.0, "0:45 left"), (8, 4, 1, 100.0, "1:40 left"), (100, 10, 3, 30.0, "3:30 left")],
)
def test_the_time_left_follows_from_the_rate(
    monkeypatch: pytest.MonkeyPatch, total: int, slots: int, batches: int, seconds: float, left: str
) -> None:
    text = shown(monkeypatch, total=total, slots=slots, batches=batches, seconds=seconds)
    assert left in text


@pytest.mark.parametrize(("slots", "says"), [(1, "looking at the first picture"), (4, "looking at 4 pictures")])
def test_before_the_first_batch_it_says_what_it_does(monkeypatch: pytest.MonkeyPatch, slots: int, says: str) -> None:
    text = shown(monkeypatch, total=9, slots=slots, batches=0, seconds=0)
    assert says in text
    assert "0.0 images/s" not in text


def test_without_a_terminal_there_is_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, total=100, slots=4, batches=5, seconds=60, tty=False) == ""
