"""Compiled limits decide as the limiter does, whatever applies together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_redis_guard.core.rates import parse_rates
from flask_redis_guard.limiting.compiled import Terms
from flask_redis_guard.limiting.limiter import RateLimiter
from flask_redis_guard.limiting.plan import Charge
from tests.integration.limiting.conftest import ServerTime
from tests.integration.limiting.test_properties import any_rates, starts, trace_settings
from tests.support import RedisServer
from tests.support.clocked import Clocked

some_terms = st.lists(
    st.builds(
        Terms,
        st.lists(any_rates, min_size=1, max_size=3, unique=True).map(tuple),
        st.sampled_from(["", "a", "100%", "%b"]),
        st.sampled_from([False, False, True]),
        st.sampled_from([False, False, True]),
    ),
    min_size=1,
    max_size=4,
)
requests = st.lists(
    st.tuples(st.integers(0, 10**6), st.lists(st.integers(0, 2), min_size=4), st.integers(0, 9)),
    min_size=3,
    max_size=15,
)


@trace_settings
@given(terms=some_terms, steps=requests, start=starts)
def test_they_decide_as_a_plan_made_for_each_request_does(
    server: RedisServer,
    clock: ServerTime,
    terms: list[Terms],
    steps: list[tuple[int, list[int], int]],
    start: int,
) -> None:
    clients = [Clocked(server.client(), clock) for _ in range(2)]
    # Prefixes in which a part of the packed command could be taken for a place to put something.
    limiters = [
        RateLimiter(client, prefix=prefix, monotonic=lambda: clock.now / 1e6)
        for client, prefix in zip(clients, ("%b{%s}", "other:"), strict=True)
    ]
    trace = clock.start(start)
    compiled = limiters[0].compile(terms)
    for pause, who, dice in steps:
        clock.now += pause
        subjects = [(trace, each) for each in who[: len(terms)]]
        costs = [1 + (dice == 0)] * len(terms)
        charges = [
            Charge(t.rates, subject, cost, t.scope, t.refundable, t.shadow)
            for t, subject, cost in zip(terms, subjects, costs, strict=True)
        ]
        found = compiled.judge(subjects, costs if dice < 2 else None)
        expected = limiters[1].judge_plan(charges)
        assert found == expected
        if dice == 9:
            limiters[0].refund(*found)
            limiters[1].refund(*expected)


def test_the_number_of_subjects_and_costs_is_that_of_the_terms(redis_server: RedisServer) -> None:
    limiter = RateLimiter(redis_server.client())
    compiled = limiter.compile([Terms(parse_rates("5/minute")), Terms(parse_rates("9/hour"))])
    assert [d.remaining for d in compiled.judge(["a", "b"])] == [4, 8]
    assert [d.remaining for d in compiled.judge(["a", "b"], [2, 3])] == [2, 5]
    for subjects, costs in ((["a"], None), (["a", "b"], [1]), (["a", "b"], [])):
        with pytest.raises(ValueError, match="expected 2 subjects and costs"):
            compiled.judge(subjects, costs)
    with pytest.raises(ValueError, match="cost: expected a positive whole number"):
        compiled.judge(["a", "b"], [1, 0])
    assert limiter.compile([]).judge([]) == []
    with pytest.raises(ValueError, match="at least one rate"):
        Terms(())


def test_a_list_of_rates_that_changes_is_read_anew(redis_server: RedisServer) -> None:
    limiter = RateLimiter(redis_server.client())
    rates = ["5/minute"]
    assert limiter.hit(rates, "a").limit == 5
    rates[0] = "9/hour"
    assert limiter.hit(rates, "a").limit == 9
