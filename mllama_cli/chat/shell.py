"""The state of the interactive chat, on which messages and slash commands act."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mllama_cli.chat.autosave import Autosave
from mllama_cli.chat.dialogue import Dialogue
from mllama_cli.core.conversation import Conversation, ImagePart, Message
from mllama_cli.core.errors import ContextLengthError, MemoryShortageError, MllamaError
from mllama_cli.core.events import Event, GenerationStats
from mllama_cli.terminal.answer_view import AnswerView, StatusLine, stats_line
from mllama_cli.terminal.console import Terminal
from mllama_cli.terminal.markdown.view import MarkdownView

if TYPE_CHECKING:
    from mllama_cli.core.sampling import Sampling
    from mllama_cli.engine.engine import Engine
    from mllama_cli.processing.prepared import PreparedImage

CONTEXT_WARNING = 0.9
"""Share of the context above which the user is warned."""


class LineSource(Protocol):
    """Reads the user's lines (``terminal.prompt.ChatPrompt``, or a list in tests)."""

    def ask(self, chips: list[str], default: str = "") -> str:
        """Return the next message. Raise EOFError when the user leaves."""
        ...

    def choose(self, question: str, choices: str) -> str:
        """Return one of the letters ``choices``; the last one for Enter or Ctrl-C alone."""
        ...


@dataclass
class DisplayOptions:
    """How answers and images are displayed; `/set` changes it."""

    verbose: bool = False
    preview: bool = True
    theme: str = "dark"


class Shell:
    """A dialogue with its terminal, input, autosave and display options."""

    def __init__(
        self,
        terminal: Terminal,
        dialogue: Dialogue,
        source: LineSource,
        autosave: Autosave,
        *,
        load_engine: "Callable[[str], Engine]",
        default_sampling: "Callable[[Engine], Sampling]",
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

    def attach(self, source: str) -> "PreparedImage":
        """Attach an image by path or URL and show its thumbnail."""
        from mllama_cli.processing.sources import read_image

        with StatusLine(self.terminal) as status:
            if "://" in source:
                status.show(f"Fetching {source}")
            image = read_image(source)
        return self.attach_image(image)

    def attach_image(self, image: ImagePart) -> "PreparedImage":
        """Attach an image and show its thumbnail."""
        prepared = self.dialogue.attach(image)
        self.show_image(prepared)
        return prepared

    def show_image(self, image: "PreparedImage", *, large: bool = False) -> None:
        """Draw an image in the terminal: a thumbnail if previews are on, or ``large`` in any case."""
        if not (self.display.preview or large):
            return
        from mllama_cli.terminal.graphics import show_preview

        size = {"max_columns": 80, "max_rows": 40} if large else {"max_columns": 32, "max_rows": 10}
        show_preview(self.terminal, image.canvas.image(), **size)

    def send(self, message: Message, *, typed: str = "") -> None:
        """Ask and show the answer; if the context is too small, let the user choose what to drop.

        ``typed`` becomes the draft of the next prompt if the message is not answered.
        """
        while True:
            before = self.dialogue.conversation
            try:
                self.show_answer(self.dialogue.ask(message))
                return
            except MemoryShortageError:
                if self.dialogue.conversation is before:
                    self.draft = typed
                raise
            except ContextLengthError as error:
                self.terminal.error(error.message, "")
                if not self.dialogue.conversation.messages:
                    self.draft = typed
                    raise ContextLengthError("This one message alone is too long", "Shorten it.") from error
                choice = self.source.choose(
                    "Drop the [o]ldest question and answer, start a [n]ew conversation, or [k]eep everything?", "onk"
                )
                if choice == "k":
                    self.draft = typed
                    return
                if choice == "n":
                    self.autosave.detach()
                    self.dialogue.conversation = Conversation()
                else:
                    self.autosave.branch()
                    self.dialogue.drop_oldest()

    def show_answer(self, events: Generator[Event]) -> None:
        """Show an answer as it arrives. Ctrl-C stops it and keeps the partial answer."""
        view = AnswerView(self.terminal, MarkdownView(self.terminal, theme=self.display.theme))
        try:
            view.show(events)
        except MllamaError:
            if view.text:
                self.autosave.save(self.dialogue)
            raise
        if view.interrupted:
            self.terminal.note("Stopped. The answer so far stays in the conversation.")
        self.autosave.save(self.dialogue)
        if view.stats is not None:
            self._note_statistics(view.stats)
        self._separate()

    def show_last_answer(self) -> None:
        """Show the last answer again, if there is one."""
        if not self.dialogue.last_answer:
            return
        view = MarkdownView(self.terminal, theme=self.display.theme)
        view.write(self.dialogue.last_answer)
        view.finish()
        self._separate()

    def _separate(self) -> None:
        """Print an empty line between an answer and the next prompt."""
        if self.terminal.stderr_is_tty:
            self.terminal.err.print()

    def _note_statistics(self, stats: GenerationStats) -> None:
        if stats.finish_reason == "length":
            self.terminal.note(f"The answer was cut at {stats.completion_tokens} tokens (/set parameter max_tokens N).")
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
