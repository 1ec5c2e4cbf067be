"""A conversation as plain data: messages made of text and image parts."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from mllama_cli.core.text import replace_surrogates

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class TextPart:
    """A piece of text, verbatim but for lone surrogates (of an argument that is not UTF-8), which become U+FFFD."""

    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", replace_surrogates(self.text))


@dataclass(frozen=True, eq=False)
class ImagePart:
    """The bytes of an image file in any supported format.

    ``name`` is the user's name of it (a path, a URL, "stdin"), for messages only. Equality compares only these two,
    also in subclasses (``processing.prepared.PreparedImage``).
    """

    data: bytes
    name: str = "image"

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the content, in hex, which does not depend on the name."""
        return hashlib.sha256(self.data).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImagePart) and (self.data, self.name) == (other.data, other.name)

    def __hash__(self) -> int:
        return hash((self.data, self.name))

    def __repr__(self) -> str:
        return f"ImagePart({self.name!r}, {len(self.data)} bytes)"


Part = TextPart | ImagePart


@dataclass(frozen=True)
class Message:
    """One turn: a role and its parts."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """Return all text parts, joined without a separator, as the chat template joins them."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def images(self) -> tuple[ImagePart, ...]:
        return tuple(part for part in self.parts if isinstance(part, ImagePart))

    def with_images(self, change: Callable[[ImagePart], ImagePart]) -> "Message":
        """Return the same message with ``change`` applied to each image."""
        return Message(self.role, tuple(change(part) if isinstance(part, ImagePart) else part for part in self.parts))


@dataclass(frozen=True)
class Conversation:
    """Messages in order. Immutable: ``with_`` methods return a longer conversation."""

    messages: tuple[Message, ...] = ()

    @classmethod
    def ask(cls, text: str, images: tuple[ImagePart, ...] = (), system: str = "") -> "Conversation":
        """Return a conversation of one question, with images before the text as in training."""
        conversation = cls((Message("system", (TextPart(system),)),)) if system else cls()
        return conversation.with_user(text, images)

    def with_user(self, text: str, images: tuple[ImagePart, ...] = ()) -> "Conversation":
        parts: tuple[Part, ...] = images + ((TextPart(text),) if text else ())
        return Conversation((*self.messages, Message("user", parts)))

    def with_assistant(self, text: str) -> "Conversation":
        return Conversation((*self.messages, Message("assistant", (TextPart(text),))))

    def with_images(self, change: Callable[[ImagePart], ImagePart]) -> "Conversation":
        """Return the same conversation with ``change`` applied to each image."""
        return Conversation(tuple(message.with_images(change) for message in self.messages))

    @property
    def images(self) -> tuple[ImagePart, ...]:
        return tuple(image for message in self.messages for image in message.images)

    @property
    def image_turns(self) -> int:
        """Return the number of messages with images. Text attends only to the latest of them before it."""
        return sum(1 for message in self.messages if message.images)

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def __len__(self) -> int:
        return len(self.messages)
