"""The in-process limiter: the same promises with this process's share, in bounded memory."""

from __future__ import annotations

import os
import threading
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_redis_guard.core.rates import Rate, parse_rates
from flask_redis_guard.limiting.keys import KeyMaker
from flask_redis_guard.limiting.local import LocalLimiter
from flask_redis_guard.limiting.plan import Charge

SECOND = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000_000_000

    def __call__(self) -> int:
        return self.now


def make(clock: Clock, **options: int) -> LocalLimiter:
    return LocalLimiter(KeyMaker("guard:", None), clock=clock, **options)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Rate, list[tuple[int, int]]]:
    rate = draw(st.builds(Rate, st.integers(1, 40), st.sampled_from([1, 60]),
        algorithm=st.sampled_from(["sliding-window", "token-bucket", "fixed-window"])))  # fmt: skip
    period = rate.per_seconds * SECOND
    pauses = st.just(0) | st.integers(0, period // rate.limit * 2) | st.integers(0, 2 * period)
    costs = st.just(1) | st.integers(1, rate.limit + 1)
    return rate, draw(st.lists(st.tuples(pauses, costs), max_size=40))


@settings(deadline=None)
@given(case=cases())
def test_promises(case: tuple[Rate, list[tuple[int, int]]]) -> None:
    rate, trace = case
    clock = Clock()
    limiter, period = make(clock), rate.per_seconds * SECOND
    admitted: list[tuple[int, int]] = []
    for pause, cost in trace:
        clock.now += pause
        decision = limiter.hit(rate, "a", cost)

        def used(span: Fraction) -> int:
            return sum(c for t, c in admitted if t > clock.now - span)

        if rate.algorithm == "sliding-window":
            slack = Fraction(0 if rate.limit <= 16 else period, 16)
            if decision.allowed:
                assert used(Fraction(period)) + cost <= rate.limit
            else:
                assert used(period + slack) + cost > rate.limit
        elif rate.algorithm == "fixed-window":
            window = used(Fraction(clock.now % period + 1))
            assert decision.allowed == (window + cost <= rate.limit)
        else:
            full_at = Fraction(0)
            for t, c in [*admitted, (clock.now, cost)]:
                full_at = max(full_at, Fraction(t)) + Fraction(c * period, rate.limit)
            assert decision.allowed == (full_at - clock.now <= period)
        if decision.allowed:
            admitted.append((clock.now, cost))
        elif cost <= rate.limit:
            clock.now += round(decision.retry_after * 1e6)
            other = make(clock)
            other._counters = limiter._counters
            counter = next(iter(other._counters.values()))
            assert counter.wait(clock.now - 1, cost) == 1
            assert counter.wait(clock.now, cost) == 0


def test_each_process_has_its_share_and_at_least_one() -> None:
    limiter = make(Clock(), processes=4)
    assert sum(limiter.hit("10/minute", "a").allowed for _ in range(10)) == 2
    assert sum(limiter.hit("3/minute", "a").allowed for _ in range(10)) == 1
    assert sum(limiter.hit(Rate(10, 60, burst=8), "a").allowed for _ in range(10)) == 2


def test_all_or_none_shadows_refunds_and_reset() -> None:
    limiter = make(Clock())
    charge = Charge(parse_rates("5/minute; 2/hour"), "a", refundable=True)
    first = limiter.judge([charge])
    assert limiter.judge([charge])[0].allowed
    refused = limiter.judge([charge])[0]
    assert (refused.allowed, refused.rate.limit) == (False, 2)
    assert refused.states[0].remaining == 3
    limiter.refund(*first)
    limiter.refund(*first)
    assert limiter.judge([charge])[0].allowed
    shadow = Charge(parse_rates("1/hour"), "a", shadow=True)
    free = Charge(parse_rates("9/hour"), "b")
    assert [[d.allowed for d in limiter.judge([free, shadow])] for _ in range(2)] == [
        [True, True],
        [True, False],
    ]
    limiter.reset("5/minute; 2/hour", "a")
    assert limiter.hit("2/hour", "a").remaining == 1


def test_memory_is_bounded_and_newcomers_get_less_not_more() -> None:
    clock = Clock()
    limiter = make(clock, max_counters=10)
    admitted = sum(limiter.hit("1/minute", i).allowed for i in range(1000))
    assert 11 <= admitted <= 10 + 64
    assert not any(limiter.hit("1/minute", i).allowed for i in range(10))
    assert len(limiter._counters) == 10
    assert len(limiter._shared) <= 64
    clock.now += 61 * SECOND
    assert limiter.hit("1/minute", 5000).allowed  # what has run out makes room


@pytest.mark.parametrize("algorithm", ["sliding-window", "token-bucket", "fixed-window"])
def test_who_was_counted_among_others_does_not_begin_anew(algorithm: str) -> None:
    clock = Clock()
    clock.now = clock.now // (60 * SECOND) * 60 * SECOND
    limiter = make(clock, max_counters=10)
    rates = parse_rates("5/minute", algorithm=algorithm)
    for crowd in range(10):
        limiter.hit("1/minute", crowd)
    clock.now += 59 * SECOND
    assert sum(limiter.hit(rates, "a").allowed for _ in range(9)) == 5
    clock.now += 2 * SECOND  # the crowd's time is over: there is room for its own counter
    again = sum(limiter.hit(rates, "a").allowed for _ in range(9))
    assert again == (5 if algorithm == "fixed-window" else 0)
    assert len(limiter._counters) <= 10
    clock.now += 600 * SECOND
    assert sum(limiter.hit(rates, "a").allowed for _ in range(9)) == 5


def test_threads_together_get_no_more_than_the_limit() -> None:
    limiter = LocalLimiter(KeyMaker("", None))
    admitted: list[bool] = []

    def work() -> None:
        admitted.extend(limiter.hit("100/hour", "a").allowed for _ in range(200))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(admitted) == 100


def test_a_forked_child_is_not_stuck_on_a_lock_held_by_its_parent() -> None:
    limiter = make(Clock())
    with limiter._locked():
        child = os.fork()
        if not child:
            os._exit(0 if limiter.hit("1/hour", "a").allowed else 1)
        assert os.waitpid(child, 0)[1] == 0
