"""The interactive chat without its line editor, over a real engine."""

from collections.abc import Callable, Iterator
from pathlib import Path

from mllama_cli.chat.autosave import Autosave
from mllama_cli.chat.dialogue import Dialogue
from mllama_cli.chat.repl import Repl
from mllama_cli.chat.shell import DisplayOptions, Shell
from mllama_cli.chat.storage.store import ChatStore
from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import UsageError
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import Engine
from mllama_cli.terminal.console import Terminal
from tests.console import Stream

DATA = Path(__file__).parents[1] / "data"
PHOTO = str(DATA / "drawing.png")


class Typed:
    """Lines as a person types them; what the prompt showed is remembered."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.choices: list[str] = []
        self.shown: list[tuple[list[str], str]] = []
        self.queue = ""
        self.cleared = False

    def ask(self, chips: list[str], default: str = "") -> str:
        self.shown.append((chips, default))
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)

    def drop_queue(self) -> str:
        queue, self.queue = self.queue, ""
        return queue

    def choose(self, question: str, choices: str) -> str:
        self.shown.append(([question], choices))
        return self.choices.pop(0)


class ChatHarness:
    """A chat with everything around it."""

    def __init__(self, engine: Engine, store: ChatStore | None, other: Engine) -> None:
        self.out, self.err = Stream(), Stream()
        self.terminal = Terminal(Stream(), self.out, self.err)
        self.typed = Typed()
        self.dialogue = Dialogue(engine, Sampling(max_tokens=5))

        def load_engine(name: str) -> Engine:
            if name != "other":
                raise UsageError(f"no model {name}", "Try other.")
            return other

        self.shell = Shell(
            self.terminal,
            self.dialogue,
            self.typed,
            Autosave(self.terminal, store),
            load_engine=load_engine,
            default_sampling=lambda engine: Sampling(max_tokens=7),
            display=DisplayOptions(preview=False),
        )

    def type(self, *lines: str) -> str:
        """Everything on stderr while these lines are handled."""
        before = len(self.err.text())
        self.typed.lines += lines
        Repl(self.shell).run()
        return self.err.text()[before:]

    @property
    def roles(self) -> list[str]:
        return [message.role for message in self.dialogue.conversation]


def photo() -> ImagePart:
    return ImagePart(Path(PHOTO).read_bytes(), PHOTO)


def interrupt_after(count: int, write: Callable[[str], int]) -> Callable[[str], int]:
    left: Iterator[int] = iter(range(count))

    def interrupting(text: str) -> int:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return write(text)

    return interrupting
