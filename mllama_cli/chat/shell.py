"""The state of the interactive chat, on which messages and slash commands act."""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mllama_cli.chat.autosave import Autosave
from mllama_cli.chat.dialogue import Dialogue
from mllama_cli.chat.storage.saved import SavedChat, printable, short_name, shortened
from mllama_cli.core.conversation import ImagePart, Message
from mllama_cli.core.errors import ContextLengthError, EngineError, MemoryShortageError, MllamaError
from mllama_cli.core.events import Event, GenerationStats
from mllama_cli.terminal.answer_view import AnswerView, StatusLine, stats_line
from mllama_cli.terminal.console import Terminal
from mllama_cli.terminal.markdown.view import MarkdownView

if TYPE_CHECKING:
    from mllama_cli.core.answerer import Answerer
    from mllama_cli.core.sampling import Sampling
    from mllama_cli.processing.prepared import PreparedImage

CONTEXT_WARNING = 0.9
"""Share of the context above which the user is warned."""


class LineSource(Protocol):
    """Reads the user's lines (``terminal.prompt.ChatPrompt``, or a list in tests)."""

    cleared: bool
    """Whether the user cleared the line before the last message."""

    def ask(self, chips: list[str], default: str = "") -> str:
        """Return the next message. Raise EOFError when the user leaves."""
        ...

    def drop_queue(self) -> str:
        """Return, instead of sending it, what was typed ahead."""
        ...

    def choose(self, question: str, choices: str) -> str:
        """Return one of the letters ``choices``; the last one for Enter or Ctrl-C alone."""
        ...


@dataclass
class DisplayOptions:
    """How answers and images are displayed; `/set` changes it."""

    verbose: bool = False
    preview: bool = True
    theme: str = "auto"
    background: str = ""
    """The terminal's background: dark, light, or empty if it is unknown."""

    @property
    def markdown_theme(self) -> str:
        return self.theme if self.theme != "auto" else self.background or "auto"


class Shell:
    """A dialogue with its terminal, input, autosave and display options."""

    def __init__(
        self,
        terminal: Terminal,
        dialogue: Dialogue,
        source: LineSource,
        autosave: Autosave,
        *,
        load_engine: "Callable[[str], Answerer]",
        default_sampling: "Callable[[Answerer], Sampling]",
        display: DisplayOptions | None = None,
    ) -> None:
        self.terminal = terminal
        self.dialogue = dialogue
        self.source = source
        self.autosave = autosave
        self.load_engine = load_engine
        self.default_sampling = default_sampling
        self.display = display or DisplayOptions()
        self.draft = ""
        """Text that the next prompt starts with."""
        self.leaving = False
        self._warned_of_context = False
        self._engine_is_lost = False
        """Whether a running engine has ended: the next answer opens the model again."""

    def attach(self, *sources: str) -> "list[PreparedImage]":
        """Attach images by path or URL, all or none, and show their thumbnails."""
        from mllama_cli.processing.documents import read_source
        from mllama_cli.processing.limits import MAX_IMAGES

        images: list[PreparedImage] = []
        with StatusLine(self.terminal) as status:
            for source in sources:
                if "://" in source:
                    status.show(f"Fetching {source}")
                room = MAX_IMAGES - len(self.dialogue.attachments) - len(images)
                images += map(self.dialogue.prepare, read_source(source, room=room).images)
        return self.attach_images(images)

    def attach_images(self, images: Iterable[ImagePart]) -> "list[PreparedImage]":
        """Attach images and show their thumbnails side by side."""
        first = len(self.dialogue.attachments) + 1
        attached = [self.dialogue.attach(image) for image in images]
        self._show_thumbnails(attached, first)
        return attached

    def replace_image(self, index: int, image: ImagePart) -> "PreparedImage":
        """Put an image in the place of an attached one, and show its thumbnail."""
        prepared = self.dialogue.prepare(image)
        self.dialogue.attachments[index] = prepared
        self._show_thumbnails([prepared], index + 1)
        return prepared

    def _show_thumbnails(self, images: "list[PreparedImage]", first: int) -> None:
        if self.display.preview and images:
            from mllama_cli.terminal.graphics import Thumbnail, show_thumbnails

            show_thumbnails(
                self.terminal,
                [
                    Thumbnail(image.canvas.image(), f"{number} {short_name(image.name)}")
                    for number, image in enumerate(images, first)
                ],
            )

    def show_image(self, image: "PreparedImage") -> None:
        """Draw an image in the terminal, large."""
        from mllama_cli.terminal.graphics import show_preview

        show_preview(self.terminal, image.canvas.image(), max_columns=80, max_rows=40)

    def send(self, message: Message, *, typed: str = "") -> None:
        """Ask and show the answer; if the context is too small, let the user choose what to drop.

        ``typed`` becomes the draft of the next prompt if the message is not answered.
        """
        while True:
            before = self.dialogue.conversation
            try:
                self.show_answer(self.dialogue.ask(message))
                return
            except (MemoryShortageError, EngineError):
                if self.dialogue.conversation is before:
                    self.draft = typed
                raise
            except ContextLengthError as error:
                self.draft = "\n".join(filter(None, [typed, self.source.drop_queue()]))
                if not self.dialogue.earlier or not self.dialogue.fits(message):
                    raise ContextLengthError(
                        f"This message alone is too long: {error.message[0].lower()}{error.message[1:]}",
                        "Shorten it (Ctrl-G opens your editor), or clear the line with Ctrl-C. Nothing was removed.",
                    ) from error
                self.terminal.error(error.message, "")
                choice = self.source.choose(
                    "Drop the [o]ldest question and answer, start a [n]ew conversation, or [k]eep everything?", "onk"
                )
                if choice == "k":
                    return
                self.draft = self.draft.removeprefix(typed).lstrip("\n")
                if choice == "n":
                    self.autosave.detach()
                    self.dialogue.start_over()
                else:
                    self.autosave.branch()
                    self.dialogue.drop_oldest()

    def show_answer(self, events: Generator[Event]) -> None:
        """Show an answer as it arrives. Ctrl-C stops it and keeps the partial answer."""
        if self._engine_is_lost:
            self.dialogue.switch(self.load_engine(self.dialogue.engine.about.name))
            self._engine_is_lost = False
        view = AnswerView(self.terminal, MarkdownView(self.terminal, theme=self.display.markdown_theme))
        try:
            view.show(events)
        except MllamaError as error:
            self._engine_is_lost = isinstance(error, EngineError)
            if view.text:
                self.autosave.save(self.dialogue)
            raise
        if view.interrupted:
            self.stopped("Stopped. The answer so far stays in the conversation." if view.text.strip() else "Stopped.")
        self.autosave.save(self.dialogue)
        if view.stats is not None:
            self._note_statistics(view.stats)
        self._separate()

    def stopped(self, note: str = "Stopped.") -> None:
        """Say that Ctrl-C stopped something, and give back what was typed ahead instead of sending it."""
        self.terminal.note(note)
        self.draft = "\n".join(filter(None, [self.draft, self.source.drop_queue()]))

    def show_resumed(self, saved: SavedChat) -> None:
        """Show which chat is continued, and its last question and answer."""
        messages, images = len(saved.conversation.messages), len(saved.conversation.images)
        self.terminal.note(
            f"Continuing {saved.name or saved.id}: {messages} message{'s' * (messages != 1)}"
            + (f", {images} image{'s' * (images != 1)}" if images else "")
            + f", {saved.updated:%Y-%m-%d %H:%M}"
        )
        questions = [message for message in saved.conversation if message.role == "user"]
        if questions and (text := shortened(printable(questions[-1].text))):
            self.terminal.note(f">>> {text}")
        if not self.dialogue.last_answer:
            return
        view = MarkdownView(self.terminal, theme=self.display.markdown_theme)
        view.write(self.dialogue.last_answer)
        view.finish()
        self._separate()

    def _separate(self) -> None:
        """Print an empty line between an answer and the next prompt."""
        if self.terminal.stderr_is_tty:
            self.terminal.err.print()

    def _note_statistics(self, stats: GenerationStats) -> None:
        if stats.finish_reason == "length":
            grammar = self.dialogue.sampling.grammar
            broken = f", so it is not {grammar.what}" if grammar is not None else ""
            count = stats.completion_tokens
            self.terminal.note(f"The answer was cut at {count} tokens{broken} (/set parameter max_tokens N).")
        if self.display.verbose:
            self.terminal.note(stats_line(stats))
        used, size = self.dialogue.context_used, self.dialogue.context
        if used < CONTEXT_WARNING * size:
            self._warned_of_context = False
        elif not self._warned_of_context:
            self._warned_of_context = True
            self.terminal.note(
                f"The context is nearly full: {used} of {size} tokens. "
                "/clear starts a new conversation, /undo removes the last question."
            )
