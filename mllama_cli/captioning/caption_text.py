"""Read the text of caption files in the encodings that they have, and add to it without changing a byte of it."""

import codecs

from mllama_cli.core.errors import CaptionError

# UTF-32's mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_BLANK = " \t\r\n"


def lenient(data: bytes) -> str:
    """Return the text, with U+FFFD for what cannot be decoded."""
    mark, encoding = _encoding(data)
    return data[len(mark) :].decode(encoding, "replace").replace("\r\n", "\n")


def decoded(data: bytes, path: str) -> tuple[bytes, str, str]:
    """Return the byte order mark, the encoding and the text. Raise CaptionError if it cannot be decoded exactly."""
    mark, encoding = _encoding(data)
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # UTF-16 without a mark is UTF-8 with zeros between the letters
        raise CaptionError(
            f"{path} is not UTF-8 text, so nothing is added to it",
            f"Convert it first: iconv -f latin1 -t utf-8 {path}; or take --existing skip or overwrite.",
        )
    return mark, encoding, text


def joined(data: bytes, caption: str, separator: str, path: str, *, prepend: bool) -> bytes:
    """Return what was in a file with a caption added, in its encoding; only blanks between the two are dropped."""
    mark, encoding, text = decoded(data, path)
    if not text.strip(_BLANK):
        whole = caption + "\n"
    elif prepend:
        whole = caption + separator + text.lstrip(_BLANK)
    else:
        end = "\r\n" if text.endswith("\r\n") else "\n"
        whole = text.rstrip(_BLANK) + separator + caption + end
    return mark + whole.encode(encoding, "replace")


def _encoding(data: bytes) -> tuple[bytes, str]:
    return next((found for found in _MARKS if data.startswith(found[0])), (b"", "utf-8"))
