"""A dialogue with a model: the conversation, attachments of the next message, and the engine's session."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mllama_cli.chat.storage.saved import short_name
from mllama_cli.core.conversation import Conversation, ImagePart, Message, Part, TextPart
from mllama_cli.core.errors import ContextLengthError, UsageError
from mllama_cli.core.events import Event, GenerationStats, LoadProgress, Notice, Prefilled, Token

if TYPE_CHECKING:
    from mllama_cli.core.answerer import Answerer
    from mllama_cli.core.sampling import Sampling
    from mllama_cli.processing.prepared import PreparedImage

REGENERATE_TEMPERATURE = 0.7
"""Used for another answer when sampling is greedy, which would only repeat the old one."""


@dataclass(frozen=True)
class AttachedText:
    """The text of a file, attached to the next message. ``source`` tells the same file given twice."""

    source: str
    name: str
    text: str

    @property
    def chip(self) -> str:
        lines = len(self.text.splitlines())
        return f"{self.name} {lines} line{'s' * (lines != 1)}"


@dataclass(frozen=True)
class _Edit:
    """What was attached before the last question was taken up for editing, and the question's own images."""

    images: "list[PreparedImage]"
    texts: list[AttachedText]
    own: "list[PreparedImage]"


class Dialogue:
    """A growing conversation. Only questions that were answered, at least in part, stay in it."""

    def __init__(self, engine: "Answerer", sampling: "Sampling", system: str = "") -> None:
        self.engine = engine
        self.sampling = sampling
        self.session = engine.session()
        self.system = system
        self.conversation = Conversation()
        self.attachments: list[PreparedImage] = []
        self.attached_text: list[AttachedText] = []
        self._undone: list[tuple[Message, ...]] = []
        self._edit: _Edit | None = None
        self.stats: GenerationStats | None = None
        self.prompt_tokens = 0

    @property
    def context(self) -> int:
        """The model's context length in tokens."""
        return self.engine.about.context

    @property
    def context_used(self) -> int:
        return self.prompt_tokens + (self.stats.completion_tokens if self.stats else 0)

    @property
    def last_answer(self) -> str:
        for message in reversed(self.conversation.messages):
            if message.role == "assistant":
                return message.text
        return ""

    def attach(self, image: ImagePart) -> "PreparedImage":
        """Decode an image and keep it for the next message. Raise ImageError or UsageError."""
        prepared = self.prepare(image)
        self.attachments.append(prepared)
        return prepared

    def prepare(self, image: ImagePart) -> "PreparedImage":
        """Decode an image for this model, unless it is decoded already. Raise ImageError or UsageError."""
        from mllama_cli.processing.decoding import decode_image

        return decode_image(image, self.engine.about.require_images())

    @property
    def chips(self) -> list[str]:
        """What is attached to the next message, in the order of /detach."""
        return [*(short_name(image.name) for image in self.attachments), *(file.chip for file in self.attached_text)]

    def attach_text(self, file: AttachedText) -> None:
        """Keep a text for the next message, once for each file."""
        self.attached_text = [each for each in self.attached_text if each.source != file.source] + [file]

    def compose(self, text: str) -> Message:
        """Return the next message: attached images, then attached texts, then the typed text."""
        if not text.strip() and not self.attached_text and self.attachments:
            text = default_question(len(self.attachments))
        files = [f"{file.name}:\n{file.text}" for file in self.attached_text]
        whole = "\n\n".join([*files, text] if text.strip() else files)
        parts: list[Part] = [*self.attachments]
        if whole:
            parts.append(TextPart(whole))
        return Message("user", tuple(parts))

    def ask(self, message: Message, sampling: "Sampling | None" = None) -> Generator[Event]:
        """Yield the events of the answer, then add the question and the answer to the conversation.

        If the generator is closed or interrupted, the partial answer is added. A question that fails before the first
        token changes neither the conversation nor the attachments.
        """
        asked = Conversation((*self.earlier, message))
        said: list[str] = []
        answered = False
        try:
            with closing(self.session.stream(self._with_system(asked), sampling or self.sampling)) as events:
                for event in events:
                    if isinstance(event, Token | Prefilled):
                        said.append(event.text)
                    elif isinstance(event, GenerationStats):
                        answered = True
                        self.stats, self.prompt_tokens = event, event.prompt_tokens
                    yield event
        finally:
            text = "".join(said)
            if answered or text.strip():
                self.conversation = asked.with_assistant(text)
                self.attachments, self.attached_text = [], []
                self._undone, self._edit = [], None

    @property
    def earlier(self) -> tuple[Message, ...]:
        """The messages before the next question: all, or those before the one that is being edited."""
        messages = self.conversation.messages
        return messages if self._edit is None else messages[: self._last_question()]

    @property
    def editing(self) -> bool:
        return self._edit is not None

    def begin_edit(self) -> str:
        """Return the last question's text. The next question replaces it once it is answered. Raise UsageError."""
        question = self.conversation.messages[self._last_question()]
        own = [self.prepare(image) for image in question.images]
        self._edit = _Edit(self.attachments, self.attached_text, own)
        self.attachments, self.attached_text = list(own), []
        return question.text

    def cancel_edit(self) -> None:
        """Leave the last question as it is. What was attached meanwhile stays attached."""
        if self._edit is None:
            return
        edit, self._edit = self._edit, None
        new = [image for image in self.attachments if not any(image is each for each in edit.own)]
        self.attachments, self.attached_text = [*edit.images, *new], [*edit.texts, *self.attached_text]

    def undo(self) -> Message:
        """Remove the last question and its answer, and return the question. Raise UsageError if there is none."""
        before = self.conversation.messages
        question = self.pop_last_turn()
        self._undone.append(before[len(self.conversation) :])
        return question

    def redo(self) -> Message:
        """Restore what ``undo`` removed last, and return its question. Raise UsageError if there is nothing."""
        if not self._undone:
            raise UsageError("There is nothing to restore", "/redo brings back what /undo removed.")
        turn = self._undone.pop()
        self.conversation = Conversation((*self.conversation.messages, *turn))
        return turn[0]

    def regenerate(self) -> Generator[Event]:
        """Yield another answer to the last question; if none comes, the old one stays. Raise UsageError."""
        before = self.conversation
        question = self.pop_last_turn()
        sampling = replace(self.sampling, seed=None)
        if sampling.temperature == 0:
            sampling = replace(sampling, temperature=REGENERATE_TEMPERATURE)
        kept = self.attachments, self.attached_text
        length = len(self.conversation)
        try:
            yield from self.ask(question, sampling)
        finally:
            if len(self.conversation) == length:
                self.conversation = before
            self.attachments, self.attached_text = kept

    def pop_last_turn(self) -> Message:
        """Remove the last question and its answer, and return the question. Raise UsageError if there is none."""
        index = self._last_question()
        question = self.conversation.messages[index]
        self.conversation = Conversation(self.conversation.messages[:index])
        return question

    def _last_question(self) -> int:
        asked = [index for index, message in enumerate(self.conversation.messages) if message.role == "user"]
        if not asked:
            raise UsageError("There is no last question: nothing was asked yet", "")
        return asked[-1]

    def fits(self, message: Message) -> bool:
        """Return whether a message alone, with the system prompt, leaves room for an answer in the context."""
        alone = self._with_system(Conversation((message,)))
        try:
            with closing(self.engine.session().stream(alone, self.sampling)) as events:
                next(event for event in events if not isinstance(event, Notice | LoadProgress))  # nothing is computed
        except ContextLengthError:
            return False
        return True

    def drop_oldest(self) -> int:
        """Remove the oldest question and its answer. Return the number of messages removed."""
        messages = self.conversation.messages
        following = [i for i, message in enumerate(messages) if message.role == "user"][1:2]
        dropped = following[0] if following else len(messages)
        self.conversation = Conversation(messages[dropped:])
        return dropped

    def start_over(self) -> None:
        """Forget the conversation, but not what is attached to the next message."""
        self.conversation = Conversation()
        self._undone, self._edit = [], None

    def clear(self) -> None:
        """Start a new conversation with the same model and settings."""
        self.conversation = Conversation()
        self.attachments, self.attached_text = [], []
        self._undone, self._edit = [], None
        self.stats, self.prompt_tokens = None, 0

    def switch(self, engine: "Answerer") -> None:
        """Continue with another model."""
        self.engine = engine
        self.session = engine.session()
        self.stats, self.prompt_tokens = None, 0

    def set_sampling(self, **values: Any) -> None:
        """Change sampling parameters. Raise UsageError for a value out of range."""
        self.sampling = replace(self.sampling, **values)

    def _with_system(self, conversation: Conversation) -> Conversation:
        if not self.system:
            return conversation
        return Conversation((Message("system", (TextPart(self.system),)), *conversation.messages))


def default_question(images: int) -> str:
    """Return the question to ask about images sent without one."""
    return "Describe this image." if images == 1 else "Describe these images."


def chip(image: "PreparedImage") -> str:
    """Return an image's name, size in pixels and tiles."""
    tiles = image.canvas.num_tiles
    return f"{short_name(image.name)} {image.width}x{image.height}, {tiles} tile{'s' * (tiles > 1)}"
