"""Threads that Ctrl-C leaves whole."""

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
    """Starts its threads, waits for them and ends them with Ctrl-C held back.

    Python's own waiting does not survive an exception out of nowhere: inside ``Thread.start`` the thread is lost to the
    pool, inside ``Thread.join`` it is taken for ended (up to Python 3.12), inside ``Future.result`` a lock is released
    that nobody holds. The interpreter then ends beside a thread at work, and torch, back from that thread's call, ends
    the whole process with "terminate called without an active exception".
    """

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        with interrupts_held():
            return super().submit(fn, *args, **kwargs)

    def wait_for(self, future: Future[T]) -> T:
        """What it gives. Ctrl-C waits as well: for short work."""
        with interrupts_held():
            return future.result()

    def results(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """``work`` of each item, in their order. After Ctrl-C no further one is begun, and it is raised."""
        with interrupts_held() as act_on_interrupt:
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
        with interrupts_held():
            super().shutdown(wait, cancel_futures=cancel_futures)


@contextmanager
def interrupts_held() -> Iterator[Callable[[], None]]:
    """Ctrl-C inside is acted on at the end of the block, or where what is yielded is called; pressed again, at once.

    Does nothing outside the main thread, which is the only one that is interrupted.
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
        ending = True  # signal.signal() lets the old handler act first, and an exception of its would leave it in place
        signal.signal(signal.SIGINT, before)
        act()
