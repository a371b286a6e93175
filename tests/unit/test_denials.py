"""The memory of refusals: exact, bounded, undone by a reset."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from flask_redis_guard.core.rates import Rate, RateState
from flask_redis_guard.limiting.denials import DenialCache

RATE = Rate(5, 60)


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def refusal(retry_after: float) -> RateState:
    return RateState(RATE, False, 0, retry_after + 1, retry_after)


def filled(clock: Clock, retry_after: float, cost: int = 2, size: int = 10) -> DenialCache:
    cache = DenialCache(size, clock)
    cache.remember(b"k", cost, clock.now, {b"k": refusal(retry_after)})
    return cache


def test_a_refusal_answers_as_much_or_more_until_its_time_is_over() -> None:
    clock = Clock()
    cache = filled(clock, 0.4)
    assert cache.find(b"k", 2) is not None
    assert cache.find(b"k", 3) is not None
    assert cache.find(b"k", 1) is None
    assert cache.find(b"other", 2) is None
    clock.now += 0.39
    denial = cache.find(b"k", 2)
    assert denial is not None
    state = cache.states(denial)[b"k"]
    assert round(state.retry_after, 6) == 0.01
    assert round(state.reset_after, 6) == 1.01
    clock.now = 50.4
    assert cache.find(b"k", 2) is None
    assert cache.hits == 3


def test_an_answer_whose_time_runs_out_on_the_way_still_refuses() -> None:
    clock = Clock()
    cache = filled(clock, 0.4)
    denial = cache.find(b"k", 2)
    assert denial is not None
    clock.now += 0.5
    state = cache.states(denial)[b"k"]
    assert (state.allowed, state.retry_after) == (False, 0.0)


def test_time_runs_from_when_the_request_was_sent() -> None:
    clock = Clock()
    cache = DenialCache(10, clock)
    cache.remember(b"k", 1, 49.5, {b"k": refusal(0.6)})
    clock.now = 50.09
    assert cache.find(b"k", 1) is not None
    clock.now = 50.1
    assert cache.find(b"k", 1) is None
    cache.remember(b"late", 1, 49.0, {b"late": refusal(0.6)})
    assert len(cache) == 1


def test_after_a_second_one_caller_asks_and_the_others_wait_for_it() -> None:
    clock = Clock()
    cache = filled(clock, 30.0)
    clock.now += 1.0
    assert cache.find(b"k", 2) is None  # this one asks
    assert all(cache.find(b"k", 2) is not None for _ in range(5))
    cache.remember(b"k", 2, clock.now, {b"k": refusal(29.0)})  # refused again
    clock.now += 0.9
    assert cache.find(b"k", 2) is not None
    clock.now += 0.1
    assert cache.find(b"k", 2) is None  # asks, and never comes back
    assert cache.find(b"k", 2) is not None
    clock.now += 1.0
    assert cache.find(b"k", 2) is None


def test_an_admission_ends_a_refusal_of_as_much() -> None:
    cache = filled(Clock(), 30.0)
    cache.admitted(b"k", 1)
    assert cache.find(b"k", 2) is not None
    cache.admitted(b"k", 2)
    assert cache.find(b"k", 2) is None


def test_a_reset_also_covers_refusals_still_under_way() -> None:
    clock = Clock()
    cache = filled(clock, 30.0)
    sent = clock.now
    clock.now += 0.1
    cache.forget([b"k"])
    assert cache.find(b"k", 2) is None
    cache.remember(b"k", 2, sent, {b"k": refusal(30.0)})
    assert cache.find(b"k", 2) is None
    clock.now += 0.1
    cache.remember(b"k", 2, clock.now, {b"k": refusal(30.0)})
    assert cache.find(b"k", 2) is not None


@given(
    size=st.integers(0, 5),
    steps=st.lists(st.tuples(st.sampled_from("rfa"), st.integers(0, 20)), max_size=60),
)
def test_it_stays_bounded_whatever_comes(size: int, steps: list[tuple[str, int]]) -> None:
    clock = Clock()
    cache = DenialCache(size, clock)
    for kind, number in steps:
        key = b"%d" % number
        if kind == "r":
            cache.remember(key, 1, clock.now, {key: refusal(9.0)})
            assert size == 0 or cache.find(key, 1) is not None
        elif kind == "f":
            cache.forget([key])
        else:
            cache.admitted(key, 1)
        assert len(cache) <= size
        clock.now += 0.01


def test_threads_share_it_without_a_lock() -> None:
    clock = Clock()
    cache = DenialCache(8, clock)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for step in range(4000):
                key = b"%d" % ((seed * 7919 + step * 31) % 40)
                cache.remember(key, 1, clock.now, {key: refusal(9.0)})
                cache.find(key, 1)
                if step % 5 == 0:
                    cache.forget([key])
                if step % 7 == 0:
                    cache.admitted(key, 1)
        except BaseException as error:  # a thread's failure has to reach the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(cache) <= 8 + len(threads)
