"""All ranks of a network, as rank 0 drives them: what it does, it tells the others to do with their parts."""

import tempfile
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from mllama_cli.core.config import MllamaTextConfig
from mllama_cli.core.errors import EngineError, MllamaError
from mllama_cli.engine.parallel.crew import Crew
from mllama_cli.engine.parallel.group import Group, Meeting
from mllama_cli.engine.parallel.messages import Names
from mllama_cli.engine.parallel.plan import Share
from mllama_cli.system.interrupts import defer_interrupts

T = TypeVar("T")
Y = TypeVar("Y")


@dataclass(frozen=True)
class JoinRequest:
    """What a rank needs to know to open its share and to meet the others.

    ``opening`` is called with the share and the device; ``threads`` are those of a CPU for each rank.
    """

    opening: Callable[[Share, torch.device], Any]
    device: str
    share: Share
    meeting: Path
    threads: int


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
    """Since ``meet``."""

    def __init__(
        self,
        devices: Sequence[torch.device],
        opening: Callable[[Share, torch.device], Any],
        config: MllamaTextConfig,
        meeting: Path | None = None,
        crew: Crew | None = None,
    ) -> None:
        """Take note of how other ranks open their share. ``begin`` or ``start`` starts them.

        Their processes are those of a ``crew``, if it is given, which has just been started. With ``meeting``,
        something else starts them, and they join at this socket.
        """
        self.devices, self.config = tuple(devices), config.shared_by(len(devices))
        self.share = Share(0, len(devices))
        self.names = Names()
        self.crew = crew or Crew()
        self._opening, self._meeting, self._threads = opening, meeting, max(1, _cpu_threads() // len(devices))
        self._lock = threading.RLock()
        self.inside = False
        """Whether all ranks are running the same code, so that nothing need be told."""
        self.leads = False
        """Whether what runs the network on rank 0 runs it on all ranks."""
        self._folder = tempfile.TemporaryDirectory(prefix="mllama-ranks-", ignore_cleanup_errors=True)
        """Of the file at which the ranks meet."""
        self.is_started = False
        self._end = weakref.finalize(self, _end, self.crew, self._folder)
        self._asked = False

    def begin(self) -> None:
        """Let the other ranks open their share in the background. Raise DeviceError where this system cannot."""
        if self._asked:
            return
        if self._meeting is not None:
            self.crew.accept(len(self.devices), self._meeting)
        elif not self.crew.members:
            self.crew.start([str(device) for device in self.devices[1:]])
        for member in self.crew.members:
            share, device = Share(member.rank, self.share.count), str(self.devices[member.rank])
            self.crew.tell(member, JoinRequest(self._opening, device, share, self._file, self._threads))
        self._asked = True

    def start(self) -> None:
        """Wait until all ranks have opened their share, and let them ``meet`` in the background.

        Raise EngineError, or what keeps one from it.
        """
        self._require_all()
        try:
            self._start()
        except BaseException as error:
            self.crew.abandon(f"The processes of the model could not be started: {error}")
            raise

    def _start(self) -> None:
        self.begin()
        for _ in ("ready", "open"):
            self.wait()
        if self.devices[0].type == "cpu":
            torch.set_num_threads(self._threads)  # else the ranks would wait for each other's threads
        for member in self.crew.members:
            self.crew.tell(member, "meet")
        self._begun = Meeting(self._file, self.share, self.devices[0], self.crew.explained)
        self.is_started = True

    def meet(self) -> None:
        """Wait until all ranks have met. Raise EngineError, or what keeps them from it."""
        with self.together("meet"):
            self.group = self._begun.group(self._require_all)
            self.crew.stop, self.crew.release = self.group.stop, self.group.close
        self.wait()
        if self.devices[0].type != "cuda":  # which need the file as long as they are a group
            self._folder.cleanup()

    def _require_all(self) -> None:
        if self.crew.lost.is_set():
            raise self.crew.error()

    @property
    def _file(self) -> Path:
        return Path(self._folder.name) / "meeting"

    def close(self) -> None:
        """End the other ranks. The end of the process does so, too."""
        self._end()

    @contextmanager
    def together(self, operation: str, *arguments: object, alike: bool = False) -> Iterator[None]:
        """Tell all ranks to do what the block does. A Ctrl-C waits for the end of the block.

        ``alike`` says that they run the same code, down to what would otherwise be told from within the block.
        """
        if self.inside:
            yield
            return
        with self._lock, defer_interrupts():
            self.crew.send(self.names.write((operation, arguments)))
            self.inside = alike
            try:
                yield
            except BaseException as error:
                self.crew.abandon(f"The processes of the model are out of step after {type(error).__name__}: {error}")
                raise
            finally:
                self.inside = False

    def generate(
        self, steps: Generator[Y, None, T], operation: str, *arguments: object, alike: bool = False
    ) -> Generator[Y, None, T]:
        """Run a generator on all ranks, step by step; the others make theirs by ``operation``."""
        if self.inside:
            return (yield from steps)
        number, ended = self.names.new(), False
        with self.together("begin", number, operation, arguments):
            pass
        try:
            while True:
                failure: MllamaError | None = None
                with self.together("advance", number, alike=alike):
                    try:
                        value = next(steps)
                    except StopIteration as end:
                        ended = True
                        result: T = end.value
                    except EngineError:
                        raise
                    except MllamaError as error:  # such as logits that are not finite, which all ranks see
                        ended, failure = True, error
                if self.crew.lost.is_set():  # what was computed without it means nothing
                    raise self.crew.error()
                if failure is not None:
                    raise failure
                if ended:
                    return result
                yield value
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


def _end(crew: Crew, folder: "tempfile.TemporaryDirectory[str]") -> None:
    crew.close()
    folder.cleanup()


@cache
def _cpu_threads() -> int:
    """Return how many threads torch used before a team changed it."""
    return torch.get_num_threads()
