"""Text of a model, a file or a web server made harmless for the terminal."""

import re

# C0 and C1 controls but tab and newline; lone surrogates cannot be written; the Unicode line ends are no newlines here.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_UNWRITABLE = re.compile("[\ud800-\udfff]")
_LINE_ENDS = re.compile("[\u2028\u2029]")


def clean_text(text: str) -> str:
    """Without control characters, so that no escape sequence survives. Works on any piece of a longer text."""
    if text.isascii() and text.isprintable():
        return text
    return _LINE_ENDS.sub(" ", _UNWRITABLE.sub("\ufffd", _CONTROL.sub("", text)))
