"""All ranks of a network, as rank 0 drives them: what it does, it tells the others to do with their parts."""

import tempfile
import threading
import weakref
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from mllama_cli.core.config import MllamaTextConfig
from mllama_cli.core.errors import MllamaError
from mllama_cli.engine.parallel.crew import Crew
from mllama_cli.engine.parallel.group import Group
from mllama_cli.engine.parallel.messages import Names
from mllama_cli.engine.parallel.plan import Share
from mllama_cli.system.interrupts import defer_interrupts

T = TypeVar("T")

BROKEN_SECONDS = 2.0
"""How long after a failed operation it may take to find out which rank has ended."""


@dataclass(frozen=True)
class OpenRequest:
    """What a rank needs to open its share of a checkpoint."""

    folder: Path
    device: str
    dtype: str
    quantize: str | None
    exact: bool
    adapters: tuple[Path, ...]
    share: Share
    meeting: Path
    threads: int
    """Of a CPU for each rank."""


@dataclass(frozen=True)
class Failure:
    """The error of a rank that goes on."""

    kind: type[MllamaError]
    message: str
    hint: str


class Team:
    """Rank 0's view of all ranks; it is rank 0 itself.

    ``config`` is that of one rank. Every method raises EngineError once a rank is lost.
    """

    group: Group
    config: MllamaTextConfig

    def __init__(self, devices: Sequence[torch.device], meeting: Path | None = None) -> None:
        """Start the other ranks, which takes them some seconds; ``open`` waits for them.

        With ``meeting``, something else has started them, and they join at this socket. Raise EngineError.
        """
        self.devices = tuple(devices)
        self.share = Share(0, len(devices))
        self.names = Names()
        self.crew = Crew()
        self._lock = threading.RLock()
        self._end = weakref.finalize(self, self.crew.close)
        if meeting is None:
            self.crew.start(len(devices))
        else:
            self.crew.accept(len(devices), meeting)

    def open(
        self, folder: Path, config: MllamaTextConfig, *, dtype: str, quantize: str | None, exact: bool,
        adapters: Sequence[Path],
    ) -> None:  # fmt: skip
        """Let all ranks open a checkpoint, and meet. ``config`` is that of one rank."""
        self.config = config
        threads = max(1, torch.get_num_threads() // len(self.devices))
        self._replies()
        with tempfile.TemporaryDirectory(prefix="mllama-ranks-") as folder_:
            meeting = Path(folder_) / "meeting"
            for member in self.crew.members:
                share = Share(member.rank, self.share.count)
                device = str(self.devices[member.rank])
                request = OpenRequest(folder, device, dtype, quantize, exact, tuple(adapters), share, meeting, threads)
                with self._noticed():
                    member.connection.send(request)
            if self.devices[0].type == "cpu":
                torch.set_num_threads(threads)  # else the ranks would wait for each other's threads
            self.group = Group.meet(meeting, self.share, self.devices[0], self._explained)
            self._replies()

    def close(self) -> None:
        """End the other ranks."""
        self._end()

    @contextmanager
    def together(self, operation: str, *arguments: object) -> Iterator[None]:
        """Tell all ranks to do what the block does. A Ctrl-C waits for the end of the block."""
        with self._lock, defer_interrupts():
            self.crew.send(self.names.write((operation, arguments)))
            try:
                yield
            except BaseException as error:
                self.crew.abandon(f"The processes of the model are out of step after {type(error).__name__}: {error}")
                raise

    def generate(self, steps: Generator[None, None, T], operation: str, *arguments: object) -> Generator[None, None, T]:
        """Run a generator on all ranks, step by step; the others make theirs by ``operation``."""
        number, ended = self.names.new(), False
        with self.together("begin", number, operation, arguments):
            pass
        try:
            while True:
                with self.together("advance", number):
                    try:
                        next(steps)
                    except StopIteration as end:
                        ended = True
                        result: T = end.value
                if ended:
                    return result
                yield
        finally:
            if not ended and not self.crew.lost.is_set():
                with self.together("close", number):
                    steps.close()

    def load(self, parts: set[str]) -> None:
        """Let the other ranks load their share of these parts of the weights; ``wait`` for them."""
        with self.together("load", parts):
            pass

    def wait(self) -> None:
        """Wait until each rank has answered. Raise the error of one that could not do what it was told."""
        self._replies()

    def _replies(self) -> None:
        failures = []
        for _ in self.crew.members:
            answer = self.crew.replies.get()
            if answer is None:
                self.crew.replies.put(None)
                raise self.crew.error()
            if isinstance(answer[1], Failure):
                failures.append(answer[1])
        for failure in failures:
            raise failure.kind(failure.message, failure.hint)

    @contextmanager
    def _noticed(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.crew.lost.wait(BROKEN_SECONDS)
            raise self.crew.error() from error

    def _explained(self, error: RuntimeError) -> Exception:
        """Return the error for users if a rank is lost, else the one that was caught."""
        return self.crew.error() if self.crew.lost.wait(BROKEN_SECONDS) else error
