"""A saved chat, and its summary in lists."""

import unicodedata
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mllama_cli.core.conversation import Conversation, Message, TextPart

TITLE_LENGTH = 60
SYSTEM_KEY = "system"
"""Key in ``settings`` of a system prompt that is not a message of the conversation."""


@dataclass(frozen=True)
class SavedChat:
    """A conversation with its name, model and settings.

    Attributes:
        id: the chat's number; 0 until it is first stored.
        created, updated: timezone-aware, in the user's zone.
        settings: a JSON object: the system prompt (under SYSTEM_KEY) and sampling.
        state: the store's token, which reveals that another process has written this chat meanwhile.
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
        """Return an empty chat. The store numbers it when it first saves a question."""
        return cls(0, model, created=(time := now()), updated=time)

    @property
    def title(self) -> str:
        return title_of(self.conversation)

    @property
    def whole(self) -> Conversation:
        """The conversation as the model saw it: with the system prompt of the settings if it has none itself."""
        system = self.settings.get(SYSTEM_KEY)
        messages = self.conversation.messages
        if not isinstance(system, str) or not system or (messages and messages[0].role == "system"):
            return self.conversation
        return Conversation((Message("system", (TextPart(system),)), *messages))


@dataclass(frozen=True)
class ChatSummary:
    """A saved chat without its messages."""

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
    """Return the start of the first question, else the names of its images; one line, safe to print."""
    for message in conversation:
        if message.role == "user":
            words = printable(message.text) or ", ".join(short_name(image.name) for image in message.images)
            if words:
                return shortened(words)
    return "(empty)"


def short_name(name: str) -> str:
    """Return an image's name without the folders or the address it came from."""
    return printable(name.rstrip("/\\").replace("\\", "/").rpartition("/")[2]) or "image"


def printable(text: str) -> str:
    """Return ``text`` on one line, without control characters and lone surrogates."""
    # Titles and names need only the start of a long text.
    spaced = (" " if char.isspace() else char for char in text[:1000])
    return " ".join("".join(char for char in spaced if unicodedata.category(char) not in ("Cc", "Cs")).split())


def shortened(text: str) -> str:
    """Cut ``text`` to TITLE_LENGTH characters, at a word if possible."""
    if len(text) <= TITLE_LENGTH:
        return text
    start = text[: TITLE_LENGTH - 1]
    at_word = start.rpartition(" ")[0]
    return (at_word if len(at_word) > TITLE_LENGTH // 2 else start) + "…"
