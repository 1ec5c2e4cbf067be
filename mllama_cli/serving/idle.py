"""End an engine that nobody has used for a while."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic


class IdleEnd:
    """Call ``end`` once, ``seconds`` after the last use has ended. Use it in the event loop alone."""

    def __init__(self, seconds: float, end: Callable[[], None]) -> None:
        self._seconds, self._end = seconds, end
        self._uses = 0
        self._since = monotonic()
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def use(self) -> Iterator[None]:
        """Stay during the block, and ``seconds`` after it."""
        self._uses += 1
        self._stop()
        try:
            yield
        finally:
            self._uses -= 1
            self._since = monotonic()
            self.wait()

    def wait(self) -> None:
        """End after ``seconds`` unless it is used."""
        self._stop()
        if not self._uses:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, self.left), self._end)

    def keep(self, seconds: float | None) -> None:
        """Stay that long after the last use from now on; None changes nothing."""
        if seconds is not None:
            self._seconds = seconds

    @property
    def left(self) -> float:
        """Seconds until the end if nobody uses it."""
        return self._seconds if self._uses else max(0.0, self._since + self._seconds - monotonic())

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
