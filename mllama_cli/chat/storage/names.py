"""Check names of saved chats, and find the chat that a name or number means."""

import unicodedata
from collections.abc import Mapping

from mllama_cli.core.errors import ChatNotFoundError, ChatStoreError, UsageError
from mllama_cli.core.text import suggest

MAX_NAME_LENGTH = 80
LIST_HINT = "`mllama history list` shows what is saved."


def checked_name(name: str) -> str:
    """Return ``name`` normalised: one line, NFC. Raise UsageError if it could not be typed later."""
    saved = unicodedata.normalize("NFC", " ".join(name.split()))
    if not saved:
        raise UsageError("The name of a chat cannot be empty", "Give it a word or two.")
    if saved.isdigit():
        raise UsageError(f"{saved} is a number, and every chat has a number already", "Give it a word or two.")
    if saved.startswith("-"):
        raise UsageError(f"{saved!r} would be read as an option", "Begin the name with another character.")
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in saved):
        raise UsageError(f"{saved!r} has characters that cannot be typed", "Leave them out.")
    if len(saved) > MAX_NAME_LENGTH:
        raise UsageError(f"The name has {len(saved)} characters; at most {MAX_NAME_LENGTH} are allowed", "Shorten it.")
    return saved


def pick(wanted: str, names: Mapping[str, int], *, exact: bool = False) -> int:
    """Return the number of the chat called ``wanted``, ignoring case; unless ``exact``, the start of a name will do.

    Raise UsageError if several names start so, ChatNotFoundError if none does.
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
        raise UsageError(
            f"{_shown(text)} is ambiguous, several chats begin with it: {_listed(begin)}", "Type more of the name."
        )
    raise ChatNotFoundError(
        f"There is no saved chat called {_shown(text)}", suggest(text, names, show=repr) + LIST_HINT
    )


def unreadable(number: int, why: str) -> ChatStoreError:
    """Return the error for a chat with damaged rows in an intact file."""
    return ChatStoreError(
        f"Chat {number} cannot be read: {why}", f"Other chats are unaffected. `mllama history rm {number}` deletes it."
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "…")


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:5]) + (", …" if len(names) > 5 else "")
