"""Tab completion: slash commands and their arguments, and paths inside a message, images first."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from mllama_cli.core.sampling import SETTABLE
from mllama_cli.core.settings import THEMES
from mllama_cli.system.files import expanded
from mllama_cli.system.patterns import has_source_name

SET_OPTIONS = ("parameter", "system", "verbose", "quiet", "preview", "nopreview", "theme")
MAX_ENTRIES = 5000
"""Entries of a folder that are read, so that Tab answers at once."""

_LAST_WORD = re.compile(r"(?:[^\s\\]|\\.)*$", re.DOTALL)
_MUST_ESCAPE = re.compile(r"([\s\\\"'()&;|<>$`!*?\[\]{}#])")


ArgumentKind = Literal["none", "text", "path", "image", "model", "chat", "parameter", "number"]


@dataclass(frozen=True)
class CommandHelp:
    """A slash command as menus show it.

    ``names`` are without the slash; ``usage`` describes the argument ("" for none), and Tab completes its ``kind``.
    """

    names: tuple[str, ...]
    usage: str
    kind: ArgumentKind
    help: str

    @property
    def call(self) -> str:
        """The command as the user types it."""
        return f"/{self.names[0]} {self.usage}".rstrip()


class ChatCompleter(Completer):
    """Completes messages of the interactive chat."""

    def __init__(
        self,
        commands: Sequence[CommandHelp],
        models: Callable[[], Sequence[str]],
        chats: Callable[[], Sequence[str]],
    ) -> None:
        self._commands = commands
        self._kinds = {name: command.kind for command in commands for name in command.names}
        self._models, self._chats = models, chats

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yield completions of the text before the cursor."""
        text = document.text_before_cursor
        if re.fullmatch(r"/[\w?-]*", text):
            yield from self._command_names(text)
            if text.count("/") == 1 and len(text) > 1 and not self._kinds.get(text[1:]):
                yield from paths(text, images_only=False)
            return
        if match := re.fullmatch(r"\s*/([\w?-]+)\s+(.*)", text, re.DOTALL):
            name, argument = match.groups()
            if name in self._kinds:
                yield from self._arguments(self._kinds[name], argument)
                return
        match = _LAST_WORD.search(text)
        word = match.group() if match else ""
        if "/" in word or word.startswith(("~", ".")):
            yield from paths(word, images_only=True)

    def _command_names(self, typed: str) -> Iterator[Completion]:
        for command in self._commands:
            for name in command.names:
                if f"/{name}".startswith(typed):
                    yield Completion(
                        f"/{name}", -len(typed), display=f"/{name} {command.usage}".rstrip(), display_meta=command.help
                    )
                    break

    def _arguments(self, kind: str, argument: str) -> Iterator[Completion]:
        if kind in ("image", "path"):
            word = _LAST_WORD.search(argument)
            yield from paths(word.group() if word else "", images_only=kind == "image")
        elif kind == "model":
            yield from _names(argument, self._models())
        elif kind == "chat":
            yield from _names(argument, self._chats())
        elif kind == "parameter":
            if argument.startswith("parameter "):
                yield from _names(argument.removeprefix("parameter ").lstrip(), SETTABLE)
            elif argument.startswith("theme "):
                yield from _names(argument.removeprefix("theme "), THEMES)
            elif argument.startswith(("verbose ", "preview ")):
                yield from _names(argument.partition(" ")[2], ("on", "off"))
            else:
                yield from _names(argument, SET_OPTIONS)


def paths(word: str, *, images_only: bool) -> Iterator[Completion]:
    """Yield files that begin with ``word``, which may be backslash-escaped: images first, then folders, then others."""
    typed = re.sub(r"\\(.)", r"\1", word)
    folder, slash, start = typed.rpartition("/")
    try:
        with os.scandir(expanded(f"{folder}{slash}" or ".")) as entries:
            found = [entry for entry in islice(entries, MAX_ENTRIES) if entry.name.startswith(start)]
    except (OSError, ValueError):
        return
    ranked = []
    for entry in found:
        if entry.name.startswith(".") and not start.startswith("."):
            continue
        is_image = has_source_name(entry.name)
        try:
            is_folder = entry.is_dir()
        except OSError:
            continue
        if is_folder or is_image or not images_only:
            rank = 1 if is_folder else 0 if is_image else 2
            ranked.append((rank, entry.name, is_folder))
    written = len(word) - len(_escaped(start)) if word.endswith(_escaped(start)) else word.rfind("/") + 1
    for _, name, is_folder in sorted(ranked):
        yield Completion(
            _escaped(name) + ("/" if is_folder else ""), written - len(word), display=name + ("/" if is_folder else "")
        )


def _names(typed: str, names: Iterable[str]) -> Iterator[Completion]:
    for name in dict.fromkeys(names):
        if name.lower().startswith(typed.lower()):
            yield Completion(name, -len(typed))


def _escaped(name: str) -> str:
    """Escape ``name`` so that ``chat.dropped_paths`` reads it back."""
    return _MUST_ESCAPE.sub(r"\\\1", name)
