"""The categories of the hostile set, and a line of the table for each."""

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module

from tests.hostile.cases import Case, Outcome, empty_program, run

CATEGORIES = {
    "pictures": "pictures.cases",
    "AVIF and HEIC": "heif.cases",
    "documents and videos": "documents.cases",
    "addresses and web servers": "addresses.cases",
    "configs": "checkpoints.configs",
    "weights": "checkpoints.weights",
    "imported files": "imports.cases",
    "chat templates": "checkpoints.templates",
    "tokenizers": "checkpoints.tokenizers",
    "messages": "texts.messages",
    "typed text": "texts.typed",
    "hub answers": "hub_answers.cases",
    "files that are added to": "files.cases",
    "shards": "shards.cases",
    "saved chats": "files.chats",
    "whole commands": "commands.cases",
}
QUICK_STEP = 25
"""With --quick, one in so many of the cases that are not heavy is tried."""

HEADER = "| category | tried | survived | worst memory | worst time |\n|---|---|---|---|---|"


def try_category(category: str, quick: bool = False) -> list[Outcome]:
    """Return the outcomes of all cases of a category."""
    module, function = CATEGORIES[category].split(".")
    make: Callable[[], Iterator[Case]] = getattr(import_module(f"tests.hostile.{module}"), function)
    cases = list(make())
    if quick:
        cases = [case for case in cases if not case.heavy][::QUICK_STEP]
    empty = empty_program()
    return [run(case, empty) for case in cases]


def row(category: str, outcomes: Sequence[Outcome]) -> str:
    """Return a category's line of the table."""
    survived = sum(not outcome.problem for outcome in outcomes)
    memory = max(outcome.memory for outcome in outcomes) / 10**6
    seconds = max(outcome.seconds for outcome in outcomes)
    return f"| {category} | {len(outcomes):,} | {survived:,} | {memory:,.0f} MB | {seconds:.1f} s |"
