"""A conversation as plain data: messages made of text and image parts."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from mllama_cli.core.errors import UsageError
from mllama_cli.core.text import replace_surrogates
from mllama_cli.core.tool_calls import ToolCall

Role = Literal["system", "user", "assistant", "tool"]


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


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class MeasuredImage(ImagePart):
    """An image with its width and height in pixels, turned upright."""

    width: int
    height: int


Part = TextPart | ImagePart


@dataclass(frozen=True)
class Message:
    """One turn: a role and its parts.

    ``tool_calls`` are an assistant's; ``name`` and ``call_id`` say which of them a message of role "tool" answers.
    """

    role: Role
    parts: tuple[Part, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""
    call_id: str = ""

    @property
    def text(self) -> str:
        """Return all text parts, joined without a separator, as the chat template joins them."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def images(self) -> tuple[ImagePart, ...]:
        return tuple(part for part in self.parts if isinstance(part, ImagePart))

    def with_images(self, change: Callable[[ImagePart], ImagePart]) -> "Message":
        """Return the same message with ``change`` applied to each image."""
        parts = tuple(change(part) if isinstance(part, ImagePart) else part for part in self.parts)
        return replace(self, parts=parts)


@dataclass(frozen=True)
class Conversation:
    """Messages in order. Immutable: ``with_`` methods return a longer conversation.

    A last message of the assistant is unfinished: the answer goes on with its text (``prefill``).
    """

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
        """Add an answer or the beginning of one. A whole answer takes the place of the prefill that it begins with."""
        before = self.messages[:-1] if self.prefill and text.startswith(self.prefill) else self.messages
        return Conversation((*before, Message("assistant", (TextPart(text),))))

    def with_prefill(self, text: str) -> "Conversation":
        """Begin the answer with ``text``, unless it is blank."""
        return self.with_assistant(text) if text.strip() else self

    @property
    def prefill(self) -> str:
        """The text that the answer must begin with; empty unless the last message is the assistant's.

        Blanks at its end are left out: tokens of words begin with their blank, so the model writes its own.
        """
        last = self.messages[-1] if self.messages else None
        return last.text.rstrip(" \t") if last is not None and last.role == "assistant" else ""

    def require_answerable(self) -> None:
        """Raise UsageError unless the last message can be answered or, if the assistant's, gone on with."""
        last = self.messages[-1] if self.messages else None
        if last is None or last.role == "system" or all(each.role in ("system", "assistant") for each in self):
            what = "the last message is from the system, so" if last is not None and last.role == "system" else ""
            raise UsageError(f"{what} there is no question to answer".strip(), "End with a message of the user.")
        if last.role == "assistant" and (last.tool_calls or not self.prefill):
            what = "a tool call" if last.tool_calls else "an empty message"
            raise UsageError(
                f"the last message is {what} of the assistant, so there is nothing to answer",
                "Add the tool's result or the next question.",
            )

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
