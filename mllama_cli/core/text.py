"""Small helpers for the text of messages."""

import re
import reprlib
from collections.abc import Callable, Iterable

# C0 and C1 controls other than tab and newline.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SURROGATES = re.compile("[\ud800-\udfff]")  # half of a pair: cannot be encoded
_LINE_ENDS = re.compile("[\u2028\u2029]")

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 80


def shown(value: object) -> str:
    """Return how an error message shows a stranger's value: as Python writes it, on one line and shortened.

    >>> shown([1, "x\\n"]), len(shown("a" * 1000))
    ("[1, 'x\\\\n']", 80)
    """
    return _SHORT.repr(value)


def suggest(
    name: str,
    options: Iterable[str],
    *,
    count: int = 1,
    cutoff: float = 0.6,
    show: Callable[[str], str] = str,
) -> str:
    """Return "Did you mean X? " with the options nearest to a misspelt ``name``; an empty text if none is near.

    Case and the Unicode form of accents are ignored. ``show`` formats an option.

    >>> suggest("Tempratur", ["temperature", "top_p"])
    'Did you mean temperature? '
    >>> suggest("x", ["temperature"])
    ''
    """
    import difflib
    import unicodedata

    def folded(text: str) -> str:
        return unicodedata.normalize("NFC", text).casefold()

    by_folded = {folded(option): option for option in options}
    near = difflib.get_close_matches(folded(name[:200]), by_folded, n=count, cutoff=cutoff)
    return f"Did you mean {' or '.join(show(by_folded[key]) for key in near)}? " if near else ""


def human_size(count: float) -> str:
    """Return a number of bytes in powers of 1000, as disks and downloads count.

    >>> human_size(999), human_size(1_200_000), human_size(21.3e9)
    ('999 B', '1.2 MB', '21.3 GB')
    """
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def replace_surrogates(text: str) -> str:
    """Return text that any Unicode encoding can hold: lone surrogates become U+FFFD."""
    return _SURROGATES.sub("\ufffd", text)


def strip_control(text: str) -> str:
    """Return untrusted text without control characters other than tab and newline, so that a terminal may show it.

    Works on any piece of a longer text.

    >>> strip_control("red\\x1b[31m\\ttext")
    'red[31m\\ttext'
    """
    if text.isascii() and text.isprintable():
        return text
    return _LINE_ENDS.sub(" ", replace_surrogates(_CONTROL.sub("", text)))
