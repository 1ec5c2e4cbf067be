"""Find images in a message: paths that were typed, or pasted by the terminal when a file is dropped on it.

For each word of the message (quotes and backslashes hold a word together, as in a shell):

- A word that names an existing image file is attached and removed from the text: "/a/b.png", 'my photo.jpg', ~/c.webp,
  my\\ photo.jpg, file:///a/b%20c.png, C:\\Users\\me\\d.jpg. So is an http(s) URL whose path has an image suffix.
- A word with an image suffix that can only be a path (it has a folder in it, begins with ~ or ., is a file: URL, is
  quoted or escaped, or is the whole message) but names no file is an error: it is never sent as text.
- A word of any other suffix that can only be a path is attached if the file is an image or a PDF by its content.
- PDF documents and videos count as images, and a name may be followed by what is meant of it: report.pdf#2-4.
- Any other word is text: a bare "figure.png" that does not exist, folders, files of other kinds.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from mllama_cli.core.errors import ImageNotFoundError
from mllama_cli.core.filetypes import DOCUMENT_SUFFIXES, IMAGE_SUFFIXES, document_format, looks_like_image
from mllama_cli.core.selection import is_selection, split_selection
from mllama_cli.processing.sources import read_head
from mllama_cli.system.files import expanded, is_file, is_folder

MAX_SEARCHED = 1_000_000
"""Characters of a message in which images are looked for: more than models read; a word may cost a system call."""
_MAX_NAME = 10_000
"""Characters of a path or an address: no system or server takes more."""

_ENDINGS = ".,;:!?)]}»”’"
_WINDOWS = re.compile(r"^(?:[A-Za-z]:[\\/]|\\\\\w)")
# Possessive, so that the expressions take no memory for each character.
_DOUBLE = r'"(?:[^"\\]++|\\.)*+"'
_SINGLE = r"'[^']*'"
_BARE = r"(?:[^\s\"'\\]++|\\.|(?<=\w)['\"](?=\w))++"
_WORD = re.compile(
    # As in a shell, except that a quote inside a word ("don't") is a letter.
    rf"(?P<windows>(?<!\S)(?:[A-Za-z]:\\|\\\\\w)\S*)"
    rf"|(?P<quoted>(?:{_DOUBLE}|{_SINGLE})(?:{_DOUBLE}|{_SINGLE}|{_BARE})*+)"
    rf"|(?P<bare>{_BARE})"
    r"|(?P<other>\S)",
    re.DOTALL,
)
_PIECE = re.compile(rf"(?P<double>{_DOUBLE})|(?P<single>{_SINGLE})|(?P<bare>{_BARE})", re.DOTALL)


@dataclass(frozen=True)
class DroppedImages:
    """A message without the names of its images, and those paths and URLs in order."""

    text: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class _Word:
    start: int
    end: int
    written: str
    meant: str
    sure: bool


def find_images(text: str) -> DroppedImages:
    """Find the images in a message. Raise ImageNotFoundError for a word that can only be a path but does not exist.

    >>> find_images("What does the .png suffix mean?")
    DroppedImages(text='What does the .png suffix mean?', paths=())
    """
    if len(text) > MAX_SEARCHED:
        return DroppedImages(text, ())
    whole = text.strip()
    if (path := _as_file(whole) or _as_misnamed(whole)) is not None:  # some terminals paste a path with spaces unquoted
        return DroppedImages("", (path,))
    kept = ""
    paths: list[str] = []
    last = 0
    for word in _words(text):
        if len(word.meant) > _MAX_NAME:
            continue
        ending = ""
        found = _as_image(word.meant)
        # The sentence's full stop is not part of the name.
        bare = word.meant if word.sure else word.meant.rstrip(_ENDINGS)
        if found is None and bare != word.meant:
            found, ending = _as_image(bare), word.meant[len(bare) :]
        if found is None and (word.sure or _only_a_path(bare)) and (found := _as_misnamed(bare)):
            ending = word.meant[len(bare) :]
        if found is None:
            if _looks_like_image(bare) and (word.sure or _only_a_path(bare) or word.written == whole):
                raise ImageNotFoundError(f"no such picture: {bare}", _hint(bare))
            continue
        paths.append(found)
        kept += text[last : word.start] + "\0" + ending
        last = word.end
    if not paths:
        return DroppedImages(text, ())
    return DroppedImages(_tidy(kept + text[last:]), tuple(paths))


def unquoted_words(text: str) -> list[str]:
    """Return the words of a text as a shell would split it, without their quotes and backslashes.

    >>> unquoted_words("'my photos/*.jpg' a\\\\ b.png")
    ['my photos/*.jpg', 'a b.png']
    """
    return [word.meant for word in _words(text)]


def _words(text: str) -> Iterator[_Word]:
    """Yield words as a shell would split them, as written and unquoted."""
    for match in _WORD.finditer(text):
        kind, written = match.lastgroup, match.group()
        shell = kind in ("quoted", "bare")
        meant = "".join(_unquoted(piece) for piece in _PIECE.finditer(written)) if shell else written
        sure = kind == "quoted" or (kind == "bare" and "\\" in written)
        yield _Word(match.start(), match.end(), written, meant, sure)


def _unquoted(piece: re.Match[str]) -> str:
    text = piece.group()
    if piece.lastgroup == "single":
        return text[1:-1]
    if piece.lastgroup == "double":
        return re.sub(r'\\(["\\$`])', r"\1", text[1:-1])
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def _as_image(word: str) -> str | None:
    """Return the path or URL if this is an image that exists (URLs are not checked)."""
    if word.lower().startswith(("http://", "https://")):
        try:
            return word if _looks_like_image(urlsplit(word).path) else None
        except ValueError:
            return None
    return _as_file(word) if _looks_like_image(word) else None


def _as_file(word: str) -> str | None:
    if not _looks_like_image(word):
        return None
    path = _local(word)
    # macOS puts a narrow no-break space before AM and PM in screenshot names; some pastes lose it.
    for variant in (path, re.sub(r" (?=[AP]M\b)", "\u202f", path)):
        if any(is_file(expanded(each)) for each in (variant, split_selection(variant)[0])):
            return variant
    return None


def _as_misnamed(word: str) -> str | None:
    """Return the path of an image whose name does not end like one's."""
    path = _local(word)
    for each in dict.fromkeys((path, split_selection(path)[0])) if path else ():
        head = read_head(expanded(each))
        if looks_like_image(head) or ((form := document_format(head)) is not None and form.kind == "pdf"):
            return path
    return None


def _hint(word: str) -> str:
    from mllama_cli.processing.sources import hint_for_missing

    near = hint_for_missing(expanded(_local(word)))
    return near if near.startswith("Did") else "Check the path; quote it if it has spaces in it."


def _local(word: str) -> str:
    if not word.lower().startswith("file:"):
        return word
    try:
        parts = urlsplit(word)
        path = unquote(parts.path)
    except ValueError:  # file://[x.png
        return word
    if is_selection(parts.fragment):
        path += f"#{parts.fragment}"
    # file:///C:/Users/...
    return path[1:] if re.match(r"^/[A-Za-z]:/", path) else path


def _only_a_path(word: str) -> bool:
    if word.lower().startswith(("http://", "https://")):
        return False
    if word.lower().startswith("file:") or word.startswith(("~", "./", "../", "/")) or _WINDOWS.match(word):
        return True
    # "png/jpg" and "and/or.png" are prose; a folder that exists makes it a path.
    folder = word.rpartition("/")[0]
    return bool(folder) and is_folder(expanded(folder))


def _looks_like_image(word: str) -> bool:
    for each in (word, split_selection(word)[0]):
        stem, dot, suffix = each.rpartition(".")
        if stem and f"{dot}{suffix}".lower() in (*IMAGE_SUFFIXES, *DOCUMENT_SUFFIXES) and not stem.endswith("/"):
            return True
    return False


def _tidy(text: str) -> str:
    """Close the gaps, marked by NUL, that the names left. Return "" if only punctuation remains."""
    text = re.sub(r"[ \t]*\0(?=[.,;:!?)])", "", text)
    text = re.sub(r"[ \t]*\0[ \t]*", " ", text)
    text = re.sub(r" *\n *", "\n", text).strip()
    return text if re.search(r"[^\s.,;:!?()]", text) or text == "?" else ""
