"""What a saved chat may be called, and which one a name or number means."""

import difflib
import unicodedata
from collections.abc import Mapping

from mllama_cli.core.errors import ChatNotFoundError, ChatStoreError, UsageError

LONGEST_NAME = 80
LIST_HINT = "`mllama history list` shows what is saved."


def checked_name(name: str) -> str:
    """``name`` as it is kept: one line, composed characters. Raises UsageError for one that could not be typed."""
    kept = unicodedata.normalize("NFC", " ".join(name.split()))
    if not kept:
        raise UsageError("The name of a chat cannot be empty", "Give it a word or two.")
    if kept.isdigit():
        raise UsageError(f"{kept} is a number, and numbers are what chats have anyway", "Give it a word or two.")
    if kept.startswith("-"):
        raise UsageError(f"{kept!r} would be taken for an option", "Begin the name with another character.")
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in kept):
        raise UsageError(f"{kept!r} has characters that cannot be typed", "Leave them out.")
    if len(kept) > LONGEST_NAME:
        raise UsageError(f"The name has {len(kept)} characters, and {LONGEST_NAME} are allowed", "Shorten it.")
    return kept


def as_number(text: str) -> int | None:
    """The number of a chat, if that is what ``text`` is."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def pick(wanted: str, names: Mapping[str, int], *, exact: bool = False) -> int:
    """The number of the chat that ``wanted`` names: itself, in other capitals, or, unless ``exact``, by its beginning.

    Raises UsageError where several begin so, ChatNotFoundError where none is near enough.
    """
    text = unicodedata.normalize("NFC", " ".join(wanted.split()))
    if text in names:
        return names[text]
    folded = text.casefold()
    same = [name for name in names if name.casefold() == folded]
    if len(same) == 1:
        return names[same[0]]
    begin = [name for name in names if folded and name.casefold().startswith(folded)]
    if begin and exact:
        raise ChatNotFoundError(f"There is no saved chat called {_shown(text)}", f"Did you mean {_listed(begin)}?")
    if len(begin) == 1:
        return names[begin[0]]
    if begin:
        raise UsageError(f"{_shown(text)} is how several chats begin: {_listed(begin)}", "Write more of the name.")
    by_fold = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(folded[:200], by_fold, n=1, cutoff=0.5)
    hint = f"Did you mean {by_fold[near[0]]!r}? {LIST_HINT}" if near else LIST_HINT
    raise ChatNotFoundError(f"There is no saved chat called {_shown(text)}", hint)


def unreadable(number: int, why: str) -> ChatStoreError:
    """One chat whose rows make no sense, though the file is sound."""
    return ChatStoreError(
        f"Chat {number} cannot be read: {why}", f"Other chats are unaffected. `mllama history rm {number}` deletes it."
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "…")


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:5]) + (", …" if len(names) > 5 else "")
