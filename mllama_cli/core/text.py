"""Small helpers for the text of messages."""

import re
import reprlib
from collections.abc import Callable, Iterable

# C0 and C1 controls other than tab and newline.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SURROGATES = re.compile("[\ud800-\udfff]")  # half of a pair: cannot be encoded
_LINE_ENDS = re.compile("[\u2028\u2029]")
_DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")  # embeddings and overrides, which reorder what follows

# The start of an address up to the end of the user's name. People also write http:/host and http:host.
_ADDRESS = re.compile(
    r"(?P<start>[a-z][a-z0-9+.-]{1,19}+:[/\\]++|(?:https?|ftp):|(?<![\w:/.])//)(?!\[)[^\s/?#:@]*+(?P<end>:|\Z)",
    re.IGNORECASE,
)
# A parameter of an address by which a server knows who may read: token=, access_token=, X-Amz-Signature=, apiKey=.
_SECRET_PARAMETER = re.compile(
    r"(?P<name>[?&#;](?:[a-z0-9_.-]{0,40}[-_.])?(?:access|auth|id|refresh|session|security|private|shared|api|client)?"
    r"(?:token|sig|signature|secret|password|passwd|pwd|pass|credentials?|key|auth|authorization|jwt|policy|session)=)"
    r"[^\s&#;\"'<>]+",
    re.IGNORECASE,
)
_PORT = re.compile(r"[0-9]*(?=[/?#\s]|\Z)")

MAX_LINE = 500
"""Characters of a line of status, an error or a cell of a table on a terminal."""

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


def as_number(text: str) -> int | None:
    """Return a typed text as a whole number; None if it is another text or has more than 18 digits.

    >>> as_number("12"), as_number("-1"), as_number("²"), as_number("9" * 5000)
    (12, None, None, None)
    """
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that puts 2 before 10 and upper case next to lower.

    >>> sorted(["b10.png", "B9.png", "b9.jpg", "a.png"], key=natural_key)
    ['a.png', 'b9.jpg', 'B9.png', 'b10.png']
    """
    pieces = re.split(r"(\d+)", name.casefold())
    return tuple((0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces if piece)


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


def hide_passwords(text: str) -> str:
    """Return text with the user and password of each address in it, and its secret parameters, replaced by ``***``.

    It knows addresses that no parser takes, such as those with a ``/``, ``#`` or blank in the password: what is not
    valid is quoted in errors. Where a port and an ``@`` in the path look the same as a password, they are hidden too.

    >>> hide_passwords("http://bob:hunter2@host/a.png: not there")
    'http://***@host/a.png: not there'
    >>> hide_passwords("https://host/a.png?width=5&X-Amz-Signature=fe5f80f77d5fa3beca038a248ff027d0 is gone")
    'https://host/a.png?width=5&X-Amz-Signature=*** is gone'
    """
    text = _SECRET_PARAMETER.sub(r"\g<name>***", text)
    *before, rest = text.split("@")
    shown: list[str] = []
    inside = False
    for piece in before:
        inside = inside and not any(map(str.isspace, piece))  # a password with @ in it
        if inside:
            continue
        start = _login_start(piece)
        inside = start is not None
        shown.append(piece if start is None else f"{piece[:start]}***")
    return "@".join([*shown, rest])


def _login_start(text: str) -> int | None:
    """Return where the user's name begins, if the end of ``text`` is that of an address before its @."""
    last_word = len(text) - len((["", *text.split()])[-1]) if text and not text[-1].isspace() else len(text)
    for match in _ADDRESS.finditer(text):
        is_port = match["end"] and _PORT.match(text, match.end())
        if not is_port or match.start() >= last_word:
            return match.end("start")
    return None


def one_line(text: str, limit: int = MAX_LINE) -> str:
    """Return untrusted text as a line that a terminal may show: no control characters, line ends or passwords.

    A text longer than ``limit`` loses its middle, since paths and addresses end with what matters.

    >>> one_line("a\\nmllama: all is well\\x1b[2J"), one_line("abcdefghij" * 8, 40)
    ('a mllama: all is well[2J', 'abcdefghijabcd… (80 characters) …defghij')
    """
    line = _DIRECTION.sub("", strip_control(re.sub(r"[\r\n\t]+", " ", hide_passwords(text)))).strip("\n")
    if len(line) <= limit:
        return line
    gap = f"… ({len(line)} characters) …"
    end = max(limit - len(gap), 0) // 3
    return f"{line[: limit - len(gap) - end]}{gap}{line[len(line) - end :]}"
