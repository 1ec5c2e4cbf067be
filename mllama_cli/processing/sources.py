"""Read images from a path, a URL, a data: URL or stdin, under limits."""

import base64
import binascii
import io
import itertools
import os
import re
import stat
import sys
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ImageError, ImageNotFoundError, UsageError
from mllama_cli.core.filetypes import document_format, image_format, looks_like_image
from mllama_cli.core.text import one_line, suggest
from mllama_cli.processing.limits import DEFAULT_LIMITS, Limits, too_many_bytes
from mllama_cli.system.files import expanded, is_file, is_folder
from mllama_cli.system.text_file import read_limited

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]{64,}+={0,2}\s*")  # a picture is never shorter
_BASE64_PIECE = 1 << 20  # a multiple of four
_MAX_PATH = 4096
"""Characters of a path that may exist: a picture in base64 need not be taken apart as one."""
_MAX_NAME = 150
"""Characters of a missing file's name that an error quotes."""

HEAD_BYTES = 64
"""By so many bytes a file's format is known."""

DATA_URL_NAME, BASE64_NAME = INLINE_NAMES = ("the data: URL", "the base64 text")
"""What images are called that have no name of their own."""

_SOURCE_HINT = "Give a path, an http(s) URL, a data: URL, or - for stdin."


def read_image(source: str | Path, stdin: BinaryIO | None = None, *, limits: Limits = DEFAULT_LIMITS) -> ImagePart:
    """Return an image file's bytes, which ``open_image`` decodes.

    Args:
        source: a path (``~`` is the home folder), an http, https, file: or data: URL, the base64 text of a picture, or
            "-" for stdin. A Path object is always a path.
        stdin: the stream that "-" reads; the process's own by default.

    Raises:
        ImageNotFoundError: no such file, or a folder.
        ImageError: unreadable, empty, or over ``limits.max_bytes``.
        DownloadError: a URL that returned no image, or not in time.
        UsageError: a source of a kind that is not supported.
    """
    if isinstance(source, Path):
        return _read_path(source, str(source), limits)
    if source == "-":
        return _read_stdin(stdin, limits)
    address = source.strip()
    if address[:5].lower() == "data:":
        return _read_data_url(address, limits)
    match = _SCHEME.match(address)
    if match is None:
        if is_base64_picture(source) and (len(source) > _MAX_PATH or not is_file(expanded(source))):
            return ImagePart(decode_base64(source, BASE64_NAME, limits), BASE64_NAME)
        return _read_path(Path(source), source, limits)
    source = address
    scheme = match[1].lower()
    if scheme in ("http", "https"):
        from mllama_cli.processing.fetch import fetch_image

        return fetch_image(source, limits)
    if scheme == "file":
        return _read_file_url(source, limits)
    raise UsageError(f"{source}: pictures cannot be read from {scheme}:// addresses", _SOURCE_HINT)


def is_base64_picture(text: str) -> bool:
    """Return whether ``text`` is base64, without any "data:" before it, that begins like a picture or document."""
    if not _BASE64.fullmatch(text):
        return False
    try:
        head = decode_base64("".join(text[:200].split())[:64], BASE64_NAME)
    except ImageError:
        return False
    return image_format(head) is not None or document_format(head) is not None  # a long path may look alike


def read_head(path: str | Path) -> bytes:
    """Return the first bytes of a file, by which its format is known; none of what is not a file, or unreadable."""
    if not is_file(path):
        return b""
    try:
        with Path(path).open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


def is_image_file(path: str | Path) -> bool:
    """Return whether a file of any name is surely an image by its first bytes."""
    return looks_like_image(read_head(path))


def decode_base64(text: str, name: str, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """Return the bytes that ``text`` encodes; white space, missing padding and the URL-safe alphabet are accepted.

    Raises ImageError, with ``name``, if it is not base64, is empty, or decodes to more than ``limits.max_bytes``.
    """
    compact = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    if len(compact) * 3 // 4 > limits.max_bytes:
        raise too_many_bytes(name, limits)
    data = io.BytesIO()
    try:
        for start in range(0, len(compact), _BASE64_PIECE):  # at once it would take several copies of the text
            piece = compact[start : start + _BASE64_PIECE]
            data.write(base64.b64decode(piece + "=" * (-len(piece) % 4), validate=True))
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{name} is not valid base64", "Encode the picture again: base64 -w0 picture.png") from error
    return _not_empty(data.getvalue(), name)


def _read_stdin(stdin: BinaryIO | None, limits: Limits) -> ImagePart:
    how = "Pipe a picture in: curl -s URL | mllama chat --image - ..."
    if stdin is None:
        if sys.stdin is None:  # under pythonw, or if the caller closed it
            raise UsageError("there is no stdin to read the picture from", how)
        stdin = sys.stdin.buffer
    if stdin.isatty():
        raise UsageError("the picture should come from stdin, but stdin is the terminal", how)
    try:
        data = _read_limited(stdin, "the picture on stdin", limits)
    except OSError as error:
        raise ImageError(f"stdin cannot be read: {error.strerror or error}", how) from error
    if not data:
        raise ImageError("stdin is empty, where a picture was expected", how)
    return ImagePart(data, "stdin")


def _read_data_url(url: str, limits: Limits) -> ImagePart:
    name = DATA_URL_NAME
    header, comma, payload = url[5:].partition(",")
    if not comma:
        raise UsageError(f"{name} has no comma before its data", "Its form is data:image/png;base64,iVBORw0...")
    if len(payload) > limits.max_bytes * 4:  # no encoding takes more than four characters a byte
        raise too_many_bytes(name, limits)
    if header.lower().rstrip().endswith(";base64"):
        return ImagePart(decode_base64(unquote(payload), name, limits), name)
    data = unquote_to_bytes(payload.encode(errors="surrogatepass"))
    if len(data) > limits.max_bytes:
        raise too_many_bytes(name, limits)
    return ImagePart(_not_empty(data, name), name)


def _read_file_url(url: str, limits: Limits) -> ImagePart:
    try:
        parts = urlsplit(url)
    except ValueError as error:  # file://[x.png
        raise UsageError(f"{url} is not a valid URL", "Give the file's path.") from error
    if parts.netloc not in ("", "localhost"):
        raise UsageError(f"{url} names a file on another machine ({parts.hostname})", "Mount it and give its path.")
    path = unquote(parts.path)
    if os.name == "nt":  # file:///C:/a.png
        path = path.lstrip("/")
    return _read_path(Path(path), path, limits, expand=False)


def _read_path(path: Path, name: str, limits: Limits, *, expand: bool = True) -> ImagePart:
    if not name.strip() or "\0" in name:
        raise UsageError(f"{name!r} is not a path", _SOURCE_HINT)
    path = expanded(path) if expand else path
    try:
        status = path.stat()
    except PermissionError as error:
        raise _unreadable(name, error) from error
    except (OSError, ValueError) as error:
        raise ImageNotFoundError(f"no such picture: {one_line(name, _MAX_NAME)}", hint_for_missing(path)) from error
    if stat.S_ISDIR(status.st_mode):
        raise ImageNotFoundError(f"{name} is a folder", "Give a picture file.")
    # Devices and sockets may never end or may act when opened; the shell's <(command) is a FIFO.
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
        raise ImageError(f"{name} is neither a file nor a pipe", "Give a picture file.")
    if status.st_size > limits.max_bytes:
        raise too_many_bytes(name, limits)
    try:
        with path.open("rb") as stream:
            data = _read_limited(stream, name, limits)
    except OSError as error:
        raise _unreadable(name, error) from error
    return ImagePart(_not_empty(data, name), name)


def _read_limited(stream: BinaryIO, name: str, limits: Limits) -> bytes:
    data = read_limited(stream, limits.max_bytes)
    if data is None:
        raise too_many_bytes(name, limits)
    return data


def _not_empty(data: bytes, name: str) -> bytes:
    if not data:
        raise ImageError(f"{name} is empty (0 bytes)", "Give a picture file with something in it.")
    return data


def _unreadable(name: str, error: OSError) -> ImageError:
    return ImageError(f"{name} cannot be read: {error.strerror or error}", "Check the file's permissions.")


def hint_for_missing(path: Path) -> str:
    """Return a hint for a missing path: the most similar name in its folder, that it is a link, or has no folder."""
    if "@" in str(path):  # an address with a password, mistyped: its parts would not be recognised as that
        return "Check the path."
    if len(str(path)) > _MAX_NAME and _BASE64.fullmatch(str(path)):
        return "This looks like base64, but not like that of a whole picture file."
    folder = path.parent
    if not is_folder(folder):
        return f"There is no folder {one_line(str(folder), _MAX_NAME)}."
    try:
        if path.is_symlink():
            return "It is a link to a file that does not exist."
        names = [entry.name for entry in itertools.islice(folder.iterdir(), 5000)]
    except OSError:
        return "Check the path."
    return suggest(path.name, names, cutoff=0.75, show=lambda name: str(folder / name)).rstrip() or "Check the path."
