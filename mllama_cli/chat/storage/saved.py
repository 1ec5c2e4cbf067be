"""A chat as it is saved, and its line in a list."""

import unicodedata
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mllama_cli.core.conversation import Conversation, Message, TextPart

TITLE_LENGTH = 60
SYSTEM = "system"
"""Key in ``settings`` of a system prompt that is not a message of the conversation."""


@dataclass(frozen=True)
class SavedChat:
    """A conversation and what belongs to it.

    Attributes:
        id: the number to type; 0 until the chat is first stored.
        created, updated: aware times, in the user's zone.
        settings: a JSON object: the system prompt (under SYSTEM) and sampling.
        state: the store's own, which shows whether another process wrote this chat meanwhile.
    """

    id: int
    model: str
    created: datetime
    updated: datetime
    name: str | None = None
    conversation: Conversation = field(default_factory=Conversation)
    settings: dict[str, Any] = field(default_factory=dict)
    state: str = field(default="", repr=False, compare=False)

    @classmethod
    def new(cls, model: str) -> "SavedChat":
        """Return an empty chat. The store numbers it when it first saves a question of it."""
        return cls(0, model, created=(time := now()), updated=time)

    @property
    def title(self) -> str:
        return title_of(self.conversation)

    @property
    def whole(self) -> Conversation:
        """The conversation as the model got it: with the system prompt of the settings if it has none itself."""
        system = self.settings.get(SYSTEM)
        messages = self.conversation.messages
        if not isinstance(system, str) or not system or (messages and messages[0].role == "system"):
            return self.conversation
        return Conversation((Message("system", (TextPart(system),)), *messages))


@dataclass(frozen=True)
class ChatSummary:
    """What a list shows of a saved chat."""

    id: int
    name: str | None
    title: str
    model: str
    created: datetime
    updated: datetime
    messages: int
    images: int


def now() -> datetime:
    """Return the time in the user's zone."""
    return datetime.now(UTC).astimezone()


def title_of(conversation: Conversation) -> str:
    """Return the first words of the first question, else the names of its images; one line, safe to print."""
    for message in conversation:
        if message.role == "user":
            words = printable(message.text) or ", ".join(short_name(image.name) for image in message.images)
            if words:
                return _cut(words)
    return "(empty)"


def short_name(name: str) -> str:
    """Return an image's name without the folders or the address it came from."""
    return printable(name.rstrip("/\\").replace("\\", "/").rpartition("/")[2]) or "image"


def printable(text: str) -> str:
    """Return ``text`` on one line, without control characters and lone surrogates."""
    # A title needs only the start of what may be a whole book.
    spaced = (" " if char.isspace() else char for char in text[:1000])
    return " ".join("".join(char for char in spaced if unicodedata.category(char) not in ("Cc", "Cs")).split())


def _cut(text: str) -> str:
    if len(text) <= TITLE_LENGTH:
        return text
    start = text[: TITLE_LENGTH - 1]
    at_word = start.rpartition(" ")[0]
    return (at_word if len(at_word) > TITLE_LENGTH // 2 else start) + "…"
