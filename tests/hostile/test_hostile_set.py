"""A part of the hostile set, and that an input which is not survived is noticed."""

import os
import signal
import sys
import time

import pytest

from mllama_cli.core.errors import UsageError
from tests.hostile.cases import SECRET, Case, empty_program, run
from tests.hostile.categories import CATEGORIES, row, try_category

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each input has a process of its own by fork")


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_part_of_each_category_is_survived(category: str) -> None:
    if category == "shards":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra peers)")
    outcomes = try_category(category, quick=True)
    assert [outcome for outcome in outcomes if outcome.problem] == []
    assert row(category, outcomes).startswith(f"| {category} | {len(outcomes)} | {len(outcomes)} |")


def raising(error: BaseException) -> Case:
    def attempt(_: object) -> None:
        raise error

    return Case("x", attempt)


PROBLEMS = {
    "another exception": (raising(ValueError("no")), "ValueError: no"),
    "an exit": (raising(SystemExit(0)), "SystemExit"),
    "an error without a message": (raising(UsageError("")), "without a message"),
    "a password": (raising(UsageError(f"{SECRET} is wrong")), "a password is shown"),
    "output": (Case("x", lambda _: print("noise", file=sys.stderr)), "noise"),  # noqa: T201
    "a crash": (Case("x", lambda _: os.kill(os.getpid(), signal.SIGKILL)), "SIGKILL"),
    "memory": (Case("x", lambda _: bytearray(b"x") * 400_000_000), "MB"),
    "a loop": (Case("x", lambda _: time.sleep(60)), "more than 0.5 seconds"),
}


@pytest.mark.parametrize(("case", "problem"), PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_what_is_not_survived_is_told(case: Case, problem: str) -> None:
    seconds = 0.5 if "0.5" in problem else 60
    assert problem in run(case, empty_program(), max_memory=300_000_000, max_seconds=seconds).problem


def test_an_error_of_ours_is_survived() -> None:
    assert run(raising(UsageError("no such picture")), empty_program()).problem == ""
