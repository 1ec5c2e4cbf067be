"""Fixtures of the batch's tests."""

import pytest

from mllama_cli.engine.batch import scheduler


@pytest.fixture(params=["at once", "one step behind"])
def tokens_read(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read tokens as on a CPU, or, as on a GPU, after the next step is launched and with requests admitted ahead."""
    if request.param == "one step behind":
        monkeypatch.setitem(scheduler.STEPS_AHEAD, "cpu", 1)
