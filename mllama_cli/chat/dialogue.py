"""One live chat: the conversation, what is attached to the next message, and the engine's session behind it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mllama_cli.core.conversation import Conversation, ImagePart, Message, Part, TextPart
from mllama_cli.core.errors import UsageError
from mllama_cli.core.events import Event, GenerationStats, Token

if TYPE_CHECKING:
    from mllama_cli.core.sampling import Sampling
    from mllama_cli.engine.engine import Engine

DESCRIBE = "Describe this image."
DESCRIBE_SEVERAL = "Describe these images."
REGENERATE_TEMPERATURE = 0.7
"""For another answer where the chat is greedy: greedy decoding would only say the same again."""


@dataclass(frozen=True)
class Attachment:
    """A picture that waits for its question. Sizes in pixels."""

    part: ImagePart
    width: int
    height: int
    tiles: int

    @property
    def chip(self) -> str:
        tiles = f"{self.tiles} tile{'s' * (self.tiles > 1)}"
        return f"{self.part.name.rpartition('/')[2]} {self.width}x{self.height}, {tiles}"


class LiveChat:
    """A conversation that grows. Only questions that were answered, in part at least, stay in it."""

    def __init__(self, engine: "Engine", sampling: "Sampling", system: str = "") -> None:
        self.engine = engine
        self.sampling = sampling
        self.session = engine.session()
        self.system = system
        self.conversation = Conversation()
        self.attachments: list[Attachment] = []
        self.attached_text: list[str] = []
        self.stats: GenerationStats | None = None
        self.prompt_tokens = 0

    @property
    def context(self) -> int:
        """Tokens that the model can read and write in one conversation."""
        return self.engine.config.text_config.max_position_embeddings

    @property
    def context_used(self) -> int:
        return self.prompt_tokens + (self.stats.completion_tokens if self.stats else 0)

    @property
    def last_answer(self) -> str:
        for message in reversed(self.conversation.messages):
            if message.role == "assistant":
                return message.text
        return ""

    @property
    def last_question(self) -> Message | None:
        for message in reversed(self.conversation.messages):
            if message.role == "user":
                return message
        return None

    def attach(self, image: ImagePart) -> Attachment:
        """Check a picture and keep it for the next message. Raises ImageError or UsageError."""
        attachment = self.examine(image)
        self.attachments.append(attachment)
        return attachment

    def examine(self, image: ImagePart) -> Attachment:
        """Decode a picture and say how the model will see it. Raises ImageError or UsageError."""
        from mllama_cli.processing.canvas import choose_canvas, supported_aspect_ratios
        from mllama_cli.processing.images import open_image

        processor = self.engine.processor.image_processor
        if processor is None:
            raise UsageError("This model is text-only: it cannot see images", "Switch with /model NAME.")
        picture = open_image(image)
        ratios = supported_aspect_ratios(processor.config.max_image_tiles)
        rows, columns = choose_canvas((picture.height, picture.width), ratios, processor.config.tile_size)
        return Attachment(image, picture.width, picture.height, rows * columns)

    def compose(self, text: str) -> Message:
        """The next message: attached pictures, then attached texts, then what was typed."""
        images = [attachment.part for attachment in self.attachments]
        if not text.strip() and not self.attached_text and images:
            text = DESCRIBE if len(images) == 1 else DESCRIBE_SEVERAL
        whole = "\n\n".join([*self.attached_text, text] if text.strip() else self.attached_text)
        parts: list[Part] = [*images]
        if whole:
            parts.append(TextPart(whole))
        return Message("user", tuple(parts))

    def ask(self, message: Message, sampling: "Sampling | None" = None) -> Iterator[Event]:
        """Events of the answer. The question and what was said of the answer join the conversation at the end.

        So they do when the iterator is closed or interrupted midway, if anything was said; a question that failed
        leaves the conversation, and what is attached, as they were.
        """
        asked = Conversation((*self.conversation.messages, message))
        said: list[str] = []
        answered = False
        try:
            for event in self.session.stream(self._with_system(asked), sampling or self.sampling):
                if isinstance(event, Token):
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

    def regenerate(self) -> Iterator[Event]:
        """Another answer to the last question; the old one comes back if nothing is said. Raises UsageError."""
        before = self.conversation
        question = self.take_back()
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

    def take_back(self) -> Message:
        """Remove the last question with its answer, and return the question. Raises UsageError if there is none."""
        question = self.last_question
        if question is None:
            raise UsageError("There is nothing to take back: nothing was asked yet", "")
        place = max(i for i, message in enumerate(self.conversation.messages) if message is question)
        self.conversation = Conversation(self.conversation.messages[:place])
        return question

    def drop_oldest(self) -> int:
        """Forget the oldest question with its answer; returns how many messages went."""
        messages = self.conversation.messages
        following = [i for i, message in enumerate(messages) if message.role == "user"][1:2]
        dropped = following[0] if following else len(messages)
        self.conversation = Conversation(messages[dropped:])
        return dropped

    def clear(self) -> None:
        """A new conversation with the same model and settings."""
        self.conversation = Conversation()
        self.attachments, self.attached_text = [], []
        self.stats, self.prompt_tokens = None, 0

    def switch(self, engine: "Engine") -> None:
        """Go on with another model."""
        self.engine = engine
        self.session = engine.session()
        self.stats, self.prompt_tokens = None, 0

    def set_sampling(self, **values: Any) -> None:
        """Change sampling parameters. Raises UsageError for a value out of range."""
        self.sampling = replace(self.sampling, **values)

    def _with_system(self, conversation: Conversation) -> Conversation:
        if not self.system:
            return conversation
        return Conversation((Message("system", (TextPart(self.system),)), *conversation.messages))
