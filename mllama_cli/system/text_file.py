"""Read what others wrote: bytes up to a limit, from a file, a pipe or a stream, and text by its byte order mark."""

import codecs
import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mllama_cli.core.errors import MllamaError, UsageError

MAX_TEXT_BYTES = 16 * 2**20
"""Largest text of any kind, such as messages with pictures in base64."""
MAX_LIST_BYTES = 64 * 2**20
"""Largest list of paths: a million of them."""
MAX_LISTED_CHARACTERS = 2**16
"""Longest path in a list, more than any system has."""
MAX_PROMPT_BYTES = 4 * 2**20
"""Largest prompt or template, far more than any context holds."""

_CHUNK_BYTES = 1 << 20
_ENCODINGS = (  # UTF-32 first: its mark begins with UTF-16's
    (codecs.BOM_UTF8, "UTF-8-sig"),
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def read_text(
    path: Path,
    *,
    limit: int = MAX_PROMPT_BYTES,
    error: type[MllamaError] = UsageError,
    hint: str = "Save it as UTF-8.",
    pipes: bool = True,
    errors: str = "strict",
) -> str:
    """Return the text of a file, as ``read_file`` and ``decode`` do. ``hint`` is for what is not text."""
    return decode(read_file(path, limit=limit, error=error, pipes=pipes), str(path), error, hint, errors=errors)


def read_file(
    path: Path, *, limit: int = MAX_TEXT_BYTES, error: type[MllamaError] = UsageError, pipes: bool = True
) -> bytes:
    """Return the bytes of a regular file or, if ``pipes``, of a named pipe: devices and sockets may never end.

    Raise ``error`` for what is missing (then its cause is FileNotFoundError), unreadable, or longer than ``limit``.
    """
    with open_file(path, error, pipes=pipes) as stream:
        return read_stream(stream, str(path), limit=limit, error=error)


@contextmanager
def open_file(path: Path, error: type[MllamaError] = UsageError, *, pipes: bool = True) -> Iterator[BinaryIO]:
    """Yield the open file of ``read_file``."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise error(f"{path} is a folder", "Give a file.")
        if not (stat.S_ISREG(mode) or (pipes and stat.S_ISFIFO(mode))):
            raise error(f"{path} is {'neither a file nor a pipe' if pipes else 'not a regular file'}", "Give a file.")
        stream = path.open("rb")
    except (OSError, ValueError) as problem:  # ValueError: a NUL or a lone surrogate in the path
        raise _unreadable(str(path), problem, error) from problem
    with stream:
        yield stream


def read_stream(
    stream: BinaryIO, name: str, *, limit: int = MAX_TEXT_BYTES, error: type[MllamaError] = UsageError
) -> bytes:
    """Return all bytes of a stream. Raise ``error``, with ``name``, if it fails or has more than ``limit``."""
    try:
        data = read_limited(stream, limit)
    except (OSError, ValueError) as problem:  # ValueError: it is closed
        raise _unreadable(name, problem, error) from problem
    if data is None:
        raise too_large(name, limit, error)
    return data


def read_list(
    stream: BinaryIO,
    name: str,
    *,
    nul: bool = False,
    limit: int = MAX_LIST_BYTES,
    error: type[MllamaError] = UsageError,
) -> Iterator[str]:
    """Yield the paths of a list as they are read, without blank lines: one a line, or each ended by NUL.

    Bytes that are not text become surrogates, as in the names of files. Raise ``error``, as ``read_stream`` does, also
    for what is not a list of paths.
    """
    end, rest, left = "\0" if nul else "\n", "", limit
    decoder: codecs.IncrementalDecoder | None = None
    while True:
        try:
            chunk = stream.read(min(_CHUNK_BYTES, left + 1))
            decoder = decoder or codecs.getincrementaldecoder(_encoding(chunk))("surrogateescape")
            text = decoder.decode(chunk, final=not chunk)
        except (OSError, ValueError) as problem:  # ValueError: it is closed, or not the text that its mark says
            raise _unreadable(name, problem, error) from problem
        left -= len(chunk)
        if left < 0:
            raise too_large(name, limit, error)
        *lines, rest = (rest + text).split(end)
        if not chunk:
            lines.append(rest)
        elif len(rest) > MAX_LISTED_CHARACTERS:
            raise error(f"{name} is not a list of paths", "Write one path a line; -0 is for lists with NUL after each.")
        yield from (line.removesuffix("\r") for line in lines if line.strip())
        if not chunk:
            return


def too_large(name: str, limit: int, error: type[MllamaError] = UsageError) -> MllamaError:
    """Return the error for a text of more than ``limit`` bytes."""
    shown = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit} bytes"
    return error(f"{name} is larger than {shown}", "No such text is that long: check that it is the right one.")


def read_limited(stream: BinaryIO, limit: int) -> bytes | None:
    """Return all bytes of a stream; None as soon as there are more than ``limit``."""
    data = io.BytesIO()  # which gives its bytes away without a copy
    while chunk := stream.read(min(_CHUNK_BYTES, limit + 1 - data.tell())):
        data.write(chunk)
        if data.tell() > limit:
            return None
    return data.getvalue()


def decode(
    data: bytes,
    name: str,
    error: type[MllamaError] = UsageError,
    hint: str = "Save it as UTF-8.",
    *,
    errors: str = "strict",
) -> str:
    """Return text in UTF-8, or in UTF-16 or UTF-32 if it begins with a byte order mark. Raise ``error`` for others."""
    encoding = _encoding(data)
    try:
        return data.decode(encoding, errors)
    except UnicodeDecodeError as problem:
        what = f"{name} is not {encoding.removesuffix('-sig')} text (byte {problem.start})"
        raise error(what, hint) from problem


def _encoding(data: bytes) -> str:
    return next((name for mark, name in _ENCODINGS if data.startswith(mark)), "UTF-8")


def _unreadable(name: str, problem: Exception, error: type[MllamaError]) -> MllamaError:
    hint = "Check its permissions." if isinstance(problem, PermissionError) else "Check the path."
    return error(f"{name} cannot be read: {getattr(problem, 'strerror', None) or problem}", hint)
