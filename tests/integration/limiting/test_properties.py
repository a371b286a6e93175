"""Random traces through the real scripts on a real server, against the plainest models."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_redis_guard.core.rates import Decision, Rate
from flask_redis_guard.limiting.limiter import RateLimiter
from flask_redis_guard.limiting.local import LocalLimiter
from flask_redis_guard.limiting.plan import Charge
from tests.integration.limiting.conftest import ServerTime
from tests.integration.limiting.models import SECOND, BucketModel, LogModel, model_of

trace_settings = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

periods = st.sampled_from([1, 2, 7, 60, 3600, 86_400])
starts = st.integers(10**15, 2 * 10**15)
exact_windows = st.builds(Rate, st.integers(1, 16), periods)
counted_windows = st.builds(Rate, st.integers(17, 60) | st.integers(61, 2**32 - 1), periods)
windows = st.one_of(exact_windows, counted_windows)
buckets = st.builds(
    Rate, st.integers(1, 60), periods, st.none() | st.integers(1, 80), st.just("token-bucket")
)
calendars = st.builds(Rate, st.integers(1, 60), periods, algorithm=st.just("fixed-window"))
any_rates = st.one_of(windows, buckets, calendars)


@st.composite
def traces(draw: st.DrawFn, rate: Rate) -> list[tuple[int, int]]:
    """Pauses (us) and costs that come near the limit and near the turns of windows."""
    period = rate.per_seconds * SECOND
    pauses = st.one_of(
        st.just(0),
        st.integers(0, period // rate.limit * 2 + 1),
        st.integers(-1, 1).map(lambda d: max(0, period // 16 + d)),
        st.integers(-1, 1).map(lambda d: period + d),
        st.integers(0, 2 * period),
    )
    costs = st.one_of(st.just(1), st.integers(1, rate.capacity), st.just(rate.capacity + 1))
    return draw(st.lists(st.tuples(pauses, costs), min_size=5, max_size=40))


@st.composite
def cases(draw: st.DrawFn, rates: st.SearchStrategy[Rate]) -> tuple[Rate, list[tuple[int, int]]]:
    rate = draw(rates)
    return rate, draw(traces(rate))


@trace_settings
@given(case=cases(any_rates), start=starts)
def test_every_decision_keeps_the_promise_of_its_algorithm(
    limiter: RateLimiter,
    clock: ServerTime,
    case: tuple[Rate, list[tuple[int, int]]],
    start: int,
) -> None:
    rate, trace = case
    subject, model = clock.start(start), model_of(rate)
    for pause, cost in trace:
        clock.now += pause
        decision = limiter.hit(rate, subject, cost)
        if model.must_refuse(clock.now, cost):
            assert not decision.allowed
        if model.must_admit(clock.now, cost):
            assert decision.allowed
        if decision.allowed:
            model.take(clock.now, cost)


@trace_settings
@given(case=cases(any_rates), start=starts)
def test_the_numbers_of_a_decision_are_true(
    limiter: RateLimiter,
    clock: ServerTime,
    case: tuple[Rate, list[tuple[int, int]]],
    start: int,
) -> None:
    rate, trace = case
    subject = clock.start(start)

    def fits_at(time: int, cost: int) -> bool:
        before, clock.now = clock.now, time
        try:
            return limiter.peek(rate, subject, cost).allowed
        finally:
            clock.now = before

    for pause, cost in trace[:15]:
        clock.now += pause
        decision = limiter.hit(rate, subject, cost)
        remaining, reset = decision.remaining, round(decision.reset_after * 1e6)
        assert remaining == 0 or fits_at(clock.now, remaining)
        assert not fits_at(clock.now, remaining + 1)
        assert fits_at(clock.now + reset, rate.capacity)
        assert reset == 0 or not fits_at(clock.now + reset - 1, rate.capacity)
        retry = round(decision.retry_after * 1e6)
        if decision.allowed:
            assert retry == 0
        elif cost <= rate.capacity:
            assert fits_at(clock.now + retry, cost)
            assert not fits_at(clock.now + retry - 1, cost)


@trace_settings
@given(case=cases(buckets), start=starts)
def test_the_token_bucket_is_the_model_step_for_step(
    limiter: RateLimiter,
    clock: ServerTime,
    case: tuple[Rate, list[tuple[int, int]]],
    start: int,
) -> None:
    rate, trace = case
    subject, model = clock.start(start), BucketModel(rate)
    burst = model.span(rate.capacity)
    for pause, cost in trace:
        clock.now += pause
        decision = limiter.hit(rate, subject, cost)
        retry = math.ceil(model.after(clock.now, cost) - burst - clock.now)
        assert decision.allowed == (retry <= 0)
        if decision.allowed:
            model.take(clock.now, cost)
        debt = max(model.full_at - clock.now, Fraction(0))
        assert decision.remaining == math.floor((burst - debt) / model.span(1))
        assert round(decision.reset_after * 1e6) == math.ceil(debt)
        if not decision.allowed and cost <= rate.capacity:
            assert round(decision.retry_after * 1e6) == retry


@trace_settings
@given(data=st.data(), rates=st.lists(any_rates, min_size=2, max_size=4, unique=True), start=starts)
def test_a_refused_request_consumes_nothing_of_any_limit(
    limiter: RateLimiter,
    clock: ServerTime,
    data: st.DataObject,
    rates: list[Rate],
    start: int,
) -> None:
    first = clock.start(start)
    trace = data.draw(traces(min(rates, key=lambda r: r.capacity)))
    for pause, cost in trace:
        clock.now += pause
        # Two subjects and two scopes: what an app, a blueprint and a route ask of one request.
        charges = [
            Charge((rate,), (first, i % 2), cost, scope=str(i)) for i, rate in enumerate(rates)
        ]

        def peeks(charges: list[Charge] = charges) -> list[int]:
            return [limiter.peek(c.rates, c.subject, 1, c.scope).remaining for c in charges]

        before = peeks()
        fits = [limiter.peek(c.rates, c.subject, cost, c.scope).allowed for c in charges]
        decisions = limiter.judge(charges)
        assert [d.allowed for d in decisions] == fits
        assert [d.remaining for d in decisions] == peeks()
        if all(fits):
            assert all(was - cost >= d.remaining for was, d in zip(before, decisions, strict=True))
        else:
            assert peeks() == before


@st.composite
def refund_traces(draw: st.DrawFn, rate: Rate) -> list[tuple[int, int, int]]:
    """Pauses (us); costs, 0 for all that is left; and which charge to give back, -1 to charge."""
    period = rate.per_seconds * SECOND
    pauses = st.just(0) | st.integers(0, period // rate.capacity) | st.integers(0, period * 9 // 8)
    costs = st.sampled_from([0, 1, 1, 2]) | st.integers(1, rate.capacity)
    step = st.tuples(pauses, costs, st.just(-1) | st.integers(-1, 9))
    return draw(st.lists(step, min_size=5, max_size=40))


@trace_settings
@given(data=st.data(), rate=any_rates, start=starts, names=st.integers(1, 3))
def test_refunds_give_back_what_still_counts_and_never_more(
    limiter: RateLimiter, clock: ServerTime, data: st.DataObject, rate: Rate, start: int, names: int
) -> None:
    subject = clock.start(start)
    # One counter, whatever number of names a limit gives it.
    rates = tuple(replace(rate, name=f"name {i}" if i else None) for i in range(names))
    # What was charged in this process is nothing of Redis's, and the other way round.
    local = LocalLimiter(limiter.keys, clock=clock)
    issuers: list[RateLimiter | LocalLimiter] = [limiter, local]
    kept: list[list[tuple[int, int, Decision]]] = [[], []]
    for pause, cost, which in data.draw(refund_traces(rate)):
        clock.now += pause
        issued = data.draw(st.integers(0, 1))
        issuer, mine = issuers[issued], kept[issued]
        if 0 <= which < len(mine):
            given_back = mine.pop(which)[2]
            limiter.refund(given_back)
            limiter.refund(given_back)  # good for one refund only
            continue
        model = model_of(rate)
        for time, taken, _ in mine:
            assert not model.must_refuse(time, taken), "more than the promise is kept"
            model.take(time, taken)
        wanted = cost or max(1, limiter.peek(rate, subject).remaining)
        decision = issuer.judge([Charge(rates, subject, wanted, refundable=True)])[0]
        if model.must_refuse(clock.now, wanted):
            assert not decision.allowed
        if not isinstance(model, BucketModel) and model.must_admit(clock.now, wanted):
            assert decision.allowed
        if decision.allowed:
            mine.append((clock.now, wanted, decision))


@trace_settings
@given(rate=any_rates, start=starts, cost=st.integers(1, 60))
def test_a_refund_at_once_undoes_the_charge(
    limiter: RateLimiter, clock: ServerTime, rate: Rate, start: int, cost: int
) -> None:
    subject = clock.start(start)
    limiter.refund(*limiter.judge([Charge((rate,), subject, cost, refundable=True)]))
    clock.now += 1  # a token bucket gives back whole microseconds
    assert limiter.peek(rate, subject).remaining == rate.capacity


@trace_settings
@given(case=cases(windows), start=starts, data=st.data())
def test_a_clock_set_back_never_makes_a_window_admit_more(
    limiter: RateLimiter,
    clock: ServerTime,
    case: tuple[Rate, list[tuple[int, int]]],
    start: int,
    data: st.DataObject,
) -> None:
    rate, trace = case
    subject, real, told, elapsed = clock.start(start), LogModel(rate), LogModel(rate), 0
    width = rate.per_seconds * SECOND // 16
    back = st.one_of(
        st.just(0), st.integers(1, 2 * width), st.integers(1, 20 * width), st.integers(1, 10**14)
    )
    for pause, cost in trace:
        elapsed += pause
        clock.now += pause - data.draw(back)
        for event in told.events:  # stamped later than now counts as stamped now
            event.time = min(event.time, clock.now)
        allowed = limiter.hit(rate, subject, cost).allowed
        if real.must_refuse(elapsed, cost):
            assert not allowed
        if told.must_admit(clock.now, cost):
            assert allowed
        if allowed:
            real.take(elapsed, cost)
            told.take(clock.now, cost)


@trace_settings
@given(case=cases(any_rates), start=starts, step=st.integers(1, 10**14))
def test_every_algorithm_recovers_from_a_clock_set_back(
    limiter: RateLimiter,
    clock: ServerTime,
    case: tuple[Rate, list[tuple[int, int]]],
    start: int,
    step: int,
) -> None:
    rate, trace = case
    subject = clock.start(start)
    for pause, cost in trace:
        clock.now += pause
        limiter.hit(rate, subject, cost)
    before = limiter.peek(rate, subject).remaining
    clock.now -= step
    assert limiter.peek(rate, subject).remaining <= before
    period = rate.per_seconds * SECOND
    if rate.algorithm == "token-bucket":
        clock.now += math.ceil(BucketModel(rate).span(rate.capacity))
    elif rate.algorithm == "fixed-window":
        clock.now += 2 * period  # the window begun before the step is finished first
    else:
        clock.now += period + period // 16
    assert limiter.peek(rate, subject, rate.capacity).allowed


def test_a_step_back_makes_no_event_older_than_it_is(
    limiter: RateLimiter, clock: ServerTime
) -> None:
    rate = Rate(17, 16)  # a second to each counter
    subject = clock.start(1_700_000_000 * SECOND + SECOND - 1)
    assert limiter.hit(rate, subject, 16).allowed  # at the very end of its second
    clock.now += 1
    assert limiter.hit(rate, subject, 1).allowed  # in the next
    clock.now -= SECOND // 2
    assert not limiter.hit(rate, subject).allowed
    clock.now += 16 * SECOND - 2
    assert not limiter.hit(rate, subject).allowed  # less than the period has really passed


def test_a_step_back_leaves_nothing_behind_that_never_runs_out(
    limiter: RateLimiter, clock: ServerTime
) -> None:
    rate = Rate(33, 16)
    subject = clock.start(1_700_000_000 * SECOND)
    for _ in range(8):
        assert limiter.hit(rate, subject, 2).allowed
        clock.now += SECOND
    clock.now -= 6 * SECOND
    for _ in range(80):  # one a second fits, whatever else was counted before
        assert limiter.hit(rate, subject).allowed
        clock.now += SECOND
    assert limiter.peek(rate, subject).remaining == 33 - 16


def test_a_token_bucket_does_not_give_back_what_has_flowed_in_already(
    limiter: RateLimiter, clock: ServerTime
) -> None:
    rate = Rate(1, 1, burst=5)
    subject = clock.start(1_700_000_000 * SECOND)
    reserved = limiter.judge([Charge((rate,), subject, refundable=True)])
    clock.now += 900_000
    limiter.hit(rate, subject)
    limiter.refund(*reserved)
    # Without the first charge the bucket would have been full at the second.
    assert limiter.peek(rate, subject).reset_after == 1.0


def test_refunds_of_a_token_bucket_do_not_add_up_to_more_than_was_taken(
    limiter: RateLimiter, clock: ServerTime
) -> None:
    rate = Rate(1, 1, burst=5)
    subject = clock.start(1_700_000_000 * SECOND)
    charge = Charge((rate,), subject, refundable=True)
    first, second = limiter.judge([charge]), limiter.judge([charge])
    limiter.refund(*first)
    clock.now += 900_000
    limiter.hit(rate, subject)
    clock.now += 100_000
    limiter.refund(*second)
    assert limiter.peek(rate, subject).reset_after >= 0.9  # what the last charge alone would need
