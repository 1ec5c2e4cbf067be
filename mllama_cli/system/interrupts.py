"""A thread pool that defers Ctrl-C while threads start, block and stop."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


class ThreadPool(ThreadPoolExecutor):
    """Start threads, wait for them and stop them with Ctrl-C deferred.

    A KeyboardInterrupt breaks Python's own waiting: in ``Thread.start`` the pool loses the thread, in ``Thread.join``
    the thread counts as ended (up to Python 3.12), in ``Future.result`` a lock is released that is not held. The
    interpreter then exits while a thread is running, and torch, returning from that thread's call, aborts the process
    with "terminate called without an active exception".
    """

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        with defer_interrupts():
            return super().submit(fn, *args, **kwargs)

    def wait_for(self, future: Future[T]) -> T:
        """Return the future's result with Ctrl-C deferred: for short work."""
        with defer_interrupts():
            return future.result()

    def results(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return ``work`` of each item, in order. Ctrl-C is raised between items, and cancels the rest."""
        with defer_interrupts() as act_on_interrupt:
            futures = [super(ThreadPool, self).submit(work, item) for item in items]
            done = []
            try:
                for future in futures:
                    done.append(future.result())
                    act_on_interrupt()
            finally:
                for future in futures:
                    future.cancel()
            return done

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with defer_interrupts():
            super().shutdown(wait, cancel_futures=cancel_futures)


@contextmanager
def defer_interrupts() -> Iterator[Callable[[], None]]:
    """Defer a Ctrl-C to the end of the block or the next call of the yielded function; a second one acts at once.

    Does nothing outside the main thread, the only one that is interrupted.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield lambda: None
        return
    held: list[Any] = []
    ending = False

    def hold(number: int, frame: Any) -> None:
        held.append(frame)
        if len(held) > 1 and not ending:
            act()

    def act() -> None:
        while held:
            before(signal.SIGINT, held.pop(0))

    signal.signal(signal.SIGINT, hold)
    try:
        yield act
    finally:
        ending = True  # signal.signal() first runs pending handlers: an exception of ours would leave ``hold`` in place
        signal.signal(signal.SIGINT, before)
        act()
