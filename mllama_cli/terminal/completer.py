"""What Tab offers: slash commands and what follows them, and paths inside a message, pictures first."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from mllama_cli.core.filetypes import IMAGE_SUFFIXES

PARAMETERS = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed", "stop",
)  # fmt: skip
SETTINGS = ("parameter", "system", "verbose", "quiet", "preview", "nopreview", "theme")
LARGEST_FOLDER = 5000
"""Entries of a folder that are looked at: Tab must answer at once."""

_LAST_WORD = re.compile(r"(?:[^\s\\]|\\.)*$", re.DOTALL)
_MUST_ESCAPE = re.compile(r"([\s\\\"'()&;|<>$`!*?\[\]{}#])")


@dataclass(frozen=True)
class CommandHelp:
    """A slash command for the menu: its names without the slash, what follows, which kind that is, what it does."""

    names: tuple[str, ...]
    usage: str
    kind: str
    help: str


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
        """Completions of what stands before the cursor."""
        text = document.text_before_cursor
        if re.fullmatch(r"/[\w?-]*", text):
            yield from self._command_names(text)
            if text.count("/") == 1 and len(text) > 1 and not self._kinds.get(text[1:]):
                yield from paths(text, pictures_only=False)
            return
        if match := re.fullmatch(r"\s*/([\w?-]+)\s+(.*)", text, re.DOTALL):
            name, argument = match.groups()
            if name in self._kinds:
                yield from self._arguments(self._kinds[name], argument)
                return
        match = _LAST_WORD.search(text)
        word = match.group() if match else ""
        if "/" in word or word.startswith(("~", ".")):
            yield from paths(word, pictures_only=True)

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
            yield from paths(word.group() if word else "", pictures_only=kind == "image")
        elif kind == "model":
            yield from _names(argument, self._models())
        elif kind == "chat":
            yield from _names(argument, self._chats())
        elif kind == "parameter":
            if argument.startswith("parameter "):
                yield from _names(argument.removeprefix("parameter ").lstrip(), PARAMETERS)
            elif argument.startswith("theme "):
                yield from _names(argument.removeprefix("theme "), ("dark", "light", "none"))
            else:
                yield from _names(argument, SETTINGS)


def paths(word: str, *, pictures_only: bool) -> Iterator[Completion]:
    """Files that begin as ``word`` does, which may be backslash-escaped: pictures first, then folders, then others."""
    typed = re.sub(r"\\(.)", r"\1", word)
    folder, slash, start = typed.rpartition("/")
    try:
        place = Path(f"{folder}{slash}" or ".").expanduser()
        with os.scandir(place) as entries:
            found = [entry for entry in islice(entries, LARGEST_FOLDER) if entry.name.startswith(start)]
    except (OSError, RuntimeError, ValueError):
        return
    ranked = []
    for entry in found:
        if entry.name.startswith(".") and not start.startswith("."):
            continue
        is_picture = entry.name.lower().endswith(IMAGE_SUFFIXES)
        try:
            is_folder = entry.is_dir()
        except OSError:
            continue
        if is_folder or is_picture or not pictures_only:
            rank = 1 if is_folder else 0 if is_picture else 2
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
    """As ``chat.dropped_paths`` reads it back."""
    return _MUST_ESCAPE.sub(r"\\\1", name)
