"""Fuzz every parser of strangers' input: a file for each kind of input, and one budget for all.

A parser returns a value or raises an MllamaError. Another exception, memory beyond ``MAX_GROWTH`` or a parser that does
not come back is a failure. Each test takes a quarter of a second and tries the same inputs each time;
`pytest tests/fuzz --fuzz-seconds 600` takes that long for each test, and tries others each time.

Bodies of HTTP requests belong in a file of their own, test_http_bodies.py, made with ``changed`` and ``damaged`` too.
"""

import itertools
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from mllama_cli.core.errors import MllamaError
from mllama_cli.core.text import MAX_LINE, one_line

DEFAULT_SECONDS = 0.25
HANGING_SECONDS = 120
MAX_GROWTH = 1_200_000
"""Kilobytes by which a parser may raise the process's peak: those of the largest picture and some more."""

Fuzz = Callable[..., None]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seconds = config.getoption("--fuzz-seconds") or DEFAULT_SECONDS
    for item in items:
        if item.path.parent == Path(__file__).parent:
            # The method ends the process, since an exception would not get through to a loop in C.
            item.add_marker(pytest.mark.timeout(seconds + HANGING_SECONDS, method="thread"))


@pytest.fixture
def fuzz(request: pytest.FixtureRequest) -> Fuzz:
    """Return a function that calls a parser with values of the strategies until the time is over."""
    chosen = request.config.getoption("--fuzz-seconds")
    start = random.randrange(10**9) if chosen else 0

    def run(parse: Callable[..., object], *strategies: st.SearchStrategy[Any]) -> None:
        before = _new_peak()
        end = time.monotonic() + (chosen or DEFAULT_SECONDS)
        for number in itertools.count(start):

            @seed(number)
            @settings(
                max_examples=40,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink],
            )
            @given(st.tuples(*strategies))
            def attempts(values: tuple[Any, ...]) -> None:
                if time.monotonic() < end:
                    survive(parse, *values)
                    assert _peak() - before < MAX_GROWTH

            attempts()
            if time.monotonic() >= end:
                return

    return run


def survive(parse: Callable[..., object], *values: Any) -> None:
    """Call a parser. Any exception but an MllamaError, whose text must fit a line, is a failure."""
    try:
        parse(*values)
    except MllamaError as error:
        problem = error
    else:
        return
    assert problem.message
    assert len(one_line(problem.message)) <= MAX_LINE


def _new_peak() -> int:
    """Forget the highest memory use so far, where the system can, and return the present one in kB."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    try:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):  # not Linux: memory is watched there
        return 0
