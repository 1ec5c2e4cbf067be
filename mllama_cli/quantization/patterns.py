"""Match the regular expressions of a stranger's config without backtracking.

Python's matcher tries every way to match, which for "(a+)+$" is exponential. Here each piece of an expression maps the
set of positions where it may begin to the set where it may end, so that no way is tried twice.
"""

import importlib
import re
from collections.abc import Sequence
from typing import Any

from mllama_cli.core.config import DAMAGED
from mllama_cli.core.errors import CheckpointError
from mllama_cli.core.text import shown

MAX_LENGTH = 20_000
MAX_STEPS = 200_000
"""Pieces tried for one name; the patterns of known tools need some hundred."""

_parser: Any = importlib.import_module("re._parser")  # no public module parses an expression


class Pattern:
    """A regular expression. Raises CheckpointError if it is invalid or uses what is not supported here."""

    def __init__(self, source: str) -> None:
        self.source = source
        if len(source) > MAX_LENGTH:
            raise CheckpointError(f"config.json: the expression {shown(source)} is too long", DAMAGED)
        try:
            self._pieces = _parser.parse(source)
        except (re.error, RecursionError, OverflowError) as error:
            raise CheckpointError(
                f"config.json: {shown(source)} is not a regular expression: {error}", DAMAGED
            ) from error
        if self._pieces.state.flags & ~re.UNICODE:
            raise self._unsupported("flags")

    def match(self, text: str) -> bool:
        """Return whether the text matches from its beginning, as ``re.match`` does."""
        self._steps, self._text = 0, text
        try:
            return bool(self._ends(self._pieces, {0}))
        except RecursionError:
            raise self._unsupported("such deep nesting") from None

    def _ends(self, pieces: Sequence[tuple[Any, Any]], starts: set[int]) -> set[int]:
        for operation, argument in pieces:
            starts = self._step(str(operation), argument, starts)
            if not starts:
                break
        return starts

    def _step(self, operation: str, argument: Any, starts: set[int]) -> set[int]:
        self._steps += 1 + len(starts)
        if self._steps > MAX_STEPS:
            raise self._unsupported("so many repetitions")
        if operation in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            return {at + 1 for at in starts if at < len(self._text) and self._fits(operation, argument, self._text[at])}
        if operation == "BRANCH":
            return set().union(*(self._ends(branch, starts) for branch in argument[1]))
        if operation == "SUBPATTERN":
            if argument[1] or argument[2]:
                raise self._unsupported("flags")
            return self._ends(argument[3], starts)
        if operation in ("MAX_REPEAT", "MIN_REPEAT"):
            return self._repeated(argument, starts)
        if operation == "AT":
            return {at for at in starts if self._is_at(str(argument), at)}
        if operation in ("ASSERT", "ASSERT_NOT") and argument[0] == 1:
            wanted = operation == "ASSERT"
            return {at for at in starts if bool(self._ends(argument[1], {at})) == wanted}
        raise self._unsupported(operation.lower().replace("_", " "))

    def _repeated(self, argument: tuple[int, int, Any], starts: set[int]) -> set[int]:
        least, most, body = argument
        for _ in range(least):
            following = self._ends(body, starts)
            if following == starts:
                break
            starts = following
        found, new = set(starts), starts
        for _ in range(most - least):
            new = self._ends(body, new) - found
            if not new:
                break
            found |= new
        return found

    def _is_at(self, where: str, at: int) -> bool:
        if where in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            return at == 0
        if where in ("AT_END", "AT_END_STRING"):
            return at == len(self._text)
        if where in ("AT_BOUNDARY", "AT_NON_BOUNDARY"):
            before, after = self._text[at - 1 : at], self._text[at : at + 1]
            return (_in_category("WORD", before) != _in_category("WORD", after)) == (where == "AT_BOUNDARY")
        raise self._unsupported(where.lower())

    def _fits(self, operation: str, argument: Any, character: str) -> bool:
        if operation == "LITERAL":
            return bool(ord(character) == argument)
        if operation == "NOT_LITERAL":
            return bool(ord(character) != argument)
        if operation == "ANY":
            return character != "\n"
        negated = str(argument[0][0]) == "NEGATE"
        return any(self._in_set(str(kind), value, character) for kind, value in argument[negated:]) != negated

    def _in_set(self, kind: str, value: Any, character: str) -> bool:
        if kind == "LITERAL":
            return bool(ord(character) == value)
        if kind == "RANGE":
            return bool(value[0] <= ord(character) <= value[1])
        name = str(value).removeprefix("CATEGORY_")
        return _in_category(name.removeprefix("NOT_"), character) != name.startswith("NOT_")

    def _unsupported(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"config.json: the expression {shown(self.source)} has {what}, which is not supported",
            "Write its targets as names, or as simpler expressions.",
        )


def _in_category(name: str, character: str) -> bool:
    if name == "DIGIT":
        return character.isdecimal()
    if name == "SPACE":
        return character.isspace()
    return character.isalnum() or character == "_"
