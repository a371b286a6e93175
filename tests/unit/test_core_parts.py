"""The parts that the breaker is made of."""

from __future__ import annotations

import gc
import queue
import threading
import weakref
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_redis_guard.core import process
from flask_redis_guard.core.breaker import SLOTS, Announcer, FailureWindow, Leases
from flask_redis_guard.core.process import ProcessLock, Worker
from tests.support import eventually, run_python

# -- announcer -----------------------------------------------------------------------------------


def test_announcer_finishes_one_item_before_the_next() -> None:
    story: list[str] = []

    def callback(number: int) -> None:
        story.append(f"begin {number}")
        if number < 3:
            announcer.add(number + 1)
            announcer.deliver()  # somebody is at it already: it must not nest
        story.append(f"end {number}")

    announcer = Announcer(callback)
    announcer.add(1)
    announcer.deliver()
    assert story == [f"{what} {n}" for n in (1, 2, 3) for what in ("begin", "end")]


def test_announcer_delivers_all_before_an_interruption_comes_out() -> None:
    seen: list[int] = []

    def callback(number: int) -> None:
        seen.append(number)
        if number == 1:
            raise KeyboardInterrupt

    announcer = Announcer(callback)
    for number in (1, 2, 3):
        announcer.add(number)
    with pytest.raises(KeyboardInterrupt):
        announcer.deliver()
    assert seen == [1, 2, 3]
    announcer.add(4)
    announcer.deliver()
    assert seen == [1, 2, 3, 4]


def test_announcer_leaves_nothing_behind_with_many_threads() -> None:
    seen: list[int] = []
    announcer = Announcer(seen.append)

    def add(start: int) -> None:
        for number in range(start, start + 500):
            announcer.add(number)
            announcer.deliver()

    threads = [threading.Thread(target=add, args=(start,)) for start in range(0, 4000, 500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(4000))


# -- window --------------------------------------------------------------------------------------


def test_window_holds_nothing_while_nothing_fails() -> None:
    window = FailureWindow(10)
    for second in range(100):
        assert window.add(float(second), failed=False) == (0, 0)
    assert not window._slots


def test_window_counts_from_the_first_failure_and_forgets_the_last() -> None:
    window = FailureWindow(10)
    window.add(0.0, failed=False)
    assert window.add(0.5, failed=True) == (1, 1)
    assert window.add(5.0, failed=False) == (2, 1)
    assert window.add(9.9, failed=True) == (3, 2)
    assert window.add(12.0, failed=False) == (3, 1)  # the first failure has left
    assert window.add(25.0, failed=False) == (0, 0)


@settings(deadline=None)  # busy machines are no bugs
@given(
    calls=st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=60),
    seconds=st.sampled_from([1.0, 10.0]),
)
def test_window_agrees_with_a_log_of_all_calls(
    calls: list[tuple[float, bool]], seconds: float
) -> None:
    window = FailureWindow(seconds)
    log: deque[tuple[int, bool]] = deque()  # by slot: the window's own grain
    now = 0.0
    for pause, failed in calls:
        now += pause
        slot = int(now // (seconds / SLOTS))
        log.append((slot, failed))
        while log[0][0] <= slot - SLOTS:
            log.popleft()
        failures = sum(entry[1] for entry in log)
        if not failures:
            log.clear()
        assert window.add(now, failed) == (len(log), failures)
        assert len(window._slots) <= SLOTS


# -- leases --------------------------------------------------------------------------------------


def test_lease_ends_in_time_once_and_never_late() -> None:
    leases = Leases(2, 5)
    first, second = leases.grant(1, 0.0), leases.grant(1, 1.0)
    assert first is not None
    assert second is not None
    assert leases.grant(1, 4.9) is None
    assert leases.next_free(4.0) == 5.0
    assert leases.end(second, 5.9)
    assert not leases.end(second, 5.9)
    assert not leases.end(first, 5.0)
    assert leases.next_free(7.0) == 7.0


# -- lock ----------------------------------------------------------------------------------------


def test_lock_excludes_threads_that_meet_at_its_first_use() -> None:
    lock = ProcessLock()
    barrier = threading.Barrier(16)
    inside = 0
    most = 0

    def enter() -> None:
        nonlocal inside, most
        barrier.wait()
        for _ in range(200):
            with lock:
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_lock_is_free_again_after_an_exception() -> None:
    lock = ProcessLock()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), lock:
            raise ZeroDivisionError


@pytest.mark.parametrize("owned", [True, False])
def test_lock_is_free_in_a_child_unless_the_forking_thread_holds_it(owned: bool) -> None:
    told = run_python(
        f"""
        import os, threading, warnings
        from flask_redis_guard.core.process import ProcessLock

        warnings.simplefilter("ignore")  # of forking with threads
        lock, held, done = ProcessLock(), threading.Event(), threading.Event()

        def hold():
            with lock:
                held.set()
                done.wait(10)

        def fork():
            child = os.fork()
            if not child:
                taken = []
                thread = threading.Thread(target=lambda: taken.append(lock.acquire(timeout=1)))
                thread.start()
                thread.join()
                print(taken[0], flush=True)
            else:
                os.waitpid(child, 0)
            return child

        if {owned}:
            with lock:
                child = fork()
        else:
            threading.Thread(target=hold).start()
            held.wait(10)
            child = fork()
        done.set()
        if not child:
            os._exit(0)
        """
    )
    assert told == f"{not owned}\n"


# -- worker --------------------------------------------------------------------------------------


class Owner:
    """Takes turns, and notes them."""

    def __init__(self, *pauses: float | None) -> None:
        self.worker = Worker("test-worker", self.turn, "The test")
        self.pauses = list(pauses)
        self.turns: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.itself = self  # a cycle, as an application has many

    def turn(self) -> float | None:
        self.turns.put(threading.get_ident())
        pause = self.pauses.pop(0) if self.pauses else 60.0
        if pause == -1:
            raise RuntimeError("boom")
        return pause


def test_worker_takes_turns_in_one_thread_and_at_once_when_it_is_woken() -> None:
    owner = Owner(0.01, 60.0)
    assert not owner.worker.running
    assert owner.worker.wake()
    first, second = owner.turns.get(timeout=5), owner.turns.get(timeout=5)
    assert first == second != threading.get_ident()
    assert owner.worker.wake()
    assert owner.turns.get(timeout=5) == first
    assert owner.turns.empty()


def test_worker_ends_with_nothing_to_do_and_starts_again() -> None:
    owner = Owner(None, None)
    for _ in range(2):
        assert owner.worker.wake()
        owner.turns.get(timeout=5)
        eventually(lambda: not owner.worker.running)
    assert owner.turns.empty()


def test_worker_that_is_woken_while_it_ends_takes_another_turn() -> None:
    for _ in range(200):
        owner = Owner(*[None] * 10)
        owner.worker.wake()
        owner.turns.get(timeout=5)
        owner.worker.wake()  # perhaps just as the thread ends
        owner.turns.get(timeout=5)


def test_worker_goes_on_after_an_unexpected_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process, "AFTER_ERROR", 0.01)
    owner = Owner(-1, 60.0)
    owner.worker.wake()
    owner.turns.get(timeout=5)
    owner.turns.get(timeout=5)
    assert "The test failed unexpectedly" in caplog.text


def test_worker_ends_when_its_owner_is_gone() -> None:
    owner = Owner(60.0)
    owner.worker.wake()
    owner.turns.get(timeout=5)
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None
    eventually(lambda: "test-worker" not in {thread.name for thread in threading.enumerate()})


def test_worker_is_another_one_in_a_child() -> None:
    told = run_python(
        """
        import os, warnings
        from tests.unit.test_core_parts import Owner

        warnings.simplefilter("ignore")  # of forking with threads
        owner = Owner(60.0, 60.0, 60.0)
        owner.worker.wake()
        owner.turns.get(timeout=5)
        child = os.fork()
        if not child:
            print(owner.worker.running, owner.worker.wake(), flush=True)
            owner.turns.get(timeout=5)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print(owner.worker.running, flush=True)
        """
    )
    assert told == "False True\nTrue\n"
