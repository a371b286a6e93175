"""A remembered refusal is never one that the server would not repeat."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from flask_redis_guard.core.rates import Rate
from flask_redis_guard.limiting.limiter import RateLimiter
from tests.integration.limiting.conftest import ServerTime
from tests.integration.limiting.models import SECOND
from tests.integration.limiting.test_properties import any_rates, starts, trace_settings
from tests.support import RedisServer
from tests.support.clocked import Clocked

steps_taken = st.lists(
    st.tuples(
        st.integers(0, 2 * SECOND) | st.just(0),  # pause
        st.none() | st.integers(-2, 2),  # or until so near to the moment to retry
        st.integers(1, 60),  # cost
        st.sampled_from([0, 1, 3_000]),  # on the way to the server
        st.integers(0, 9).map(lambda dice: dice == 0),  # reset before
    ),
    min_size=5,
    max_size=25,
)


@trace_settings
@example(  # the moment to retry, where sums of floats come out too high
    steps=[
        (0, None, 1, 1, True),
        (2, None, 1, 0, False),
        (0, -2, 1, 1, False),
        (0, None, 1, 0, False),
        (1, None, 1, 0, False),
    ],
    rates=[Rate(1, 2)],
    start=1_903_184_753_468_575,
)
@given(
    steps=steps_taken, rates=st.lists(any_rates, min_size=1, max_size=3, unique=True), start=starts
)
def test_never_refuses_what_the_server_would_admit(
    server: RedisServer,
    clock: ServerTime,
    steps: list[tuple[int, int | None, int, int, bool]],
    rates: list[Rate],
    start: int,
) -> None:
    subject, delay, retry = clock.start(start), 0, 0

    def arriving() -> int:
        clock.now += delay
        return clock.now

    client = server.client()
    limiter = RateLimiter(Clocked(client, arriving), monotonic=lambda: clock.now / 1e6)
    truth = RateLimiter(Clocked(client, clock), denial_cache_size=0)
    most = min(rate.capacity for rate in rates)
    for pause, near, wanted, delay, reset in steps:  # noqa: B007 - arriving() takes it
        clock.now += pause if near is None else max(0, retry + near)
        cost = min(wanted, most)
        if reset:
            limiter.reset(rates, subject)
        would = truth.peek(rates, subject, cost)
        decision = limiter.hit(rates, subject, cost)
        if decision.remembered:
            assert not decision.allowed
            assert not would.allowed
            assert decision.retry_after <= would.retry_after + 1e-6
        elif would.allowed:
            assert decision.allowed
        retry = round(decision.retry_after * 1e6)
