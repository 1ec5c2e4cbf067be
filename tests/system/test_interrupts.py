"""Ctrl-C while threads start, work and end: nothing is lost, and nothing goes on behind the program's back."""

import os
import signal
import threading
import time

import pytest

from mllama_cli.system.interrupts import ThreadPool, defer_interrupts

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_waits_for_the_end_of_the_block() -> None:
    steps: list[str] = []

    def block() -> None:
        with defer_interrupts():
            press_ctrl_c()
            steps.append("inside")
        steps.append("after")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert steps == ["inside"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_pressed_twice_does_not_wait() -> None:
    steps: list[str] = []

    def block() -> None:
        with defer_interrupts():
            press_ctrl_c()
            steps.append("once")
            press_ctrl_c()
            steps.append("twice")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert steps == ["once"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_means_what_it_meant_outside() -> None:
    """A handler of the program's own is asked, once for each press."""
    presses: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: presses.append(number))
    try:
        with defer_interrupts():
            press_ctrl_c()
            assert not presses
        assert presses == [signal.SIGINT]
        with defer_interrupts():
            press_ctrl_c()
            press_ctrl_c()
        assert presses == [signal.SIGINT] * 3
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_press_while_the_hold_ends_leaves_no_handler_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """``signal.signal`` itself first lets the old handler act on what has come meanwhile."""
    install = signal.signal

    def pressed_meanwhile(number: int, handler: object) -> object:
        if handler is signal.default_int_handler:
            press_ctrl_c()
        return install(number, handler)  # type: ignore[arg-type]

    def block() -> None:
        with defer_interrupts():
            monkeypatch.setattr(signal, "signal", pressed_meanwhile)
            press_ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        block()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_pool_works_in_another_thread() -> None:
    """Only the main thread may change what Ctrl-C does."""
    found: list[int] = []

    def work() -> None:
        with ThreadPool(2) as pool:
            found.extend(pool.map(abs, (-1, -2)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [1, 2]


def test_a_pool_waits_for_its_threads_whatever_is_pressed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interrupt comes at the worst moment: while the pool waits for a thread that is at work."""
    working, ended = threading.Event(), threading.Event()
    join = threading.Thread.join

    def interrupted_join(thread: threading.Thread, timeout: float | None = None) -> None:
        press_ctrl_c()
        join(thread, timeout)

    def work() -> None:
        working.set()
        time.sleep(0.1)
        ended.set()

    def use() -> None:
        with ThreadPool(1) as pool:
            pool.submit(work)
            assert working.wait(60)
            monkeypatch.setattr(threading.Thread, "join", interrupted_join)

    with pytest.raises(KeyboardInterrupt):
        use()
    assert ended.is_set()


def test_a_pool_knows_a_thread_whose_start_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    start = threading.Thread.start

    def interrupted_start(thread: threading.Thread) -> None:
        start(thread)
        press_ctrl_c()

    def work() -> None:
        time.sleep(0.1)
        ended.set()

    monkeypatch.setattr(threading.Thread, "start", interrupted_start)
    with pytest.raises(KeyboardInterrupt), ThreadPool(1) as pool:
        pool.submit(work)
    assert ended.is_set()


def test_after_ctrl_c_no_further_work_is_begun() -> None:
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 0:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.005)

    with pytest.raises(KeyboardInterrupt), ThreadPool(1) as pool:
        pool.results(work, range(1000))
    assert len(begun) < 1000


def test_results_come_in_the_order_of_the_items() -> None:
    def work(number: int) -> int:
        time.sleep(0.02 / (1 + number))
        return -number

    with ThreadPool(4) as pool:
        assert pool.results(work, range(4)) == [0, -1, -2, -3]
        with pytest.raises(ZeroDivisionError):
            pool.results(lambda number: 1 / number, (1, 0, 2))


def test_what_a_thread_gives_is_waited_for_whatever_is_pressed(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = threading.Event()

    def work() -> None:
        waiting.wait(60)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

    with ThreadPool(1) as pool:
        future = pool.submit(work)
        result = future.result
        monkeypatch.setattr(future, "result", lambda: waiting.set() or result())
        with pytest.raises(KeyboardInterrupt):
            pool.wait_for(future)
        assert future.done()
