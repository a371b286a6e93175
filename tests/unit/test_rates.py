"""Rates: what is read, what is refused, what a decision speaks for."""

from __future__ import annotations

import limits
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_redis_guard.core.rates import (
    MAX_BUCKET_PRODUCT,
    MAX_LIMIT,
    MAX_PERIOD,
    Decision,
    Rate,
    RateState,
    parse_rates,
)


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("5/minute", [Rate(5, 60)]),
        ("5 per minute", [Rate(5, 60)]),
        ("5/MINUTES", [Rate(5, 60)]),
        ("1 per 15 minutes", [Rate(1, 900)]),
        ("1/15minutes", [Rate(1, 900)]),
        (" 10 / second ", [Rate(10, 1)]),
        ("5/minute; 100/day", [Rate(5, 60), Rate(100, 86_400)]),
        ("5/minute,100/day|7 per 2 hours", [Rate(5, 60), Rate(100, 86_400), Rate(7, 7200)]),
        ("1/week;1/month;1/year", [Rate(1, 604_800), Rate(1, 2_592_000), Rate(1, 31_104_000)]),
        (["5/minute", Rate(9, 9), "5/minute"], [Rate(5, 60), Rate(9, 9)]),
        (Rate(9, 9), [Rate(9, 9)]),
    ],
)
def test_notation(text: object, rates: list[Rate]) -> None:
    assert parse_rates(text) == tuple(rates)  # type: ignore[arg-type]


def test_notation_means_what_limits_takes_it_for() -> None:
    for text in ("5/minute; 100 per 2 days", "1 per month|3/year,10 per 15 second"):
        theirs = [(item.amount, item.get_expiry()) for item in limits.parse_many(text)]
        assert [(r.limit, r.per_seconds) for r in parse_rates(text)] == theirs


@pytest.mark.parametrize(
    "bad",
    ["", " ", ";", "5", "minute", "5/fortnight", "5/minute;", "-5/minute", "5.5/minute", "5/0 days",
     "0/minute", "5/minute 6/hour", "٥/minute", "9" * 5000 + "/minute", "99999999999/second",
     "1/11 years", None, 5, 5.0, b"5/minute", [], [None], [b"5/minute"], {"5/fortnight": 1}],
)  # fmt: skip
def test_what_is_no_rate_is_refused_and_says_what_is_accepted(bad: object) -> None:
    with pytest.raises(ValueError, match=r"5/minute|expected a whole number|expected at least"):
        parse_rates(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": True}, "limit"),
        ({"limit": 5.0}, "limit"),
        ({"limit": MAX_LIMIT + 1}, "limit"),
        ({"per_seconds": 0}, "per_seconds"),
        ({"per_seconds": 0.5}, "per_seconds"),
        ({"per_seconds": MAX_PERIOD + 1}, "per_seconds"),
        ({"burst": 0}, "burst"),
        ({"burst": 9, "algorithm": "sliding-window"}, "burst"),
        ({"burst": 9, "algorithm": "fixed-window"}, "burst"),
        ({"algorithm": "leaky"}, "algorithm.*sliding-window, token-bucket, fixed-window"),
        ({"name": 5}, "name"),
        ({"limit": 2**26, "algorithm": "token-bucket"}, "not exact"),
        ({"per_seconds": 86_400, "burst": 3651 * 5}, "ten years"),
    ],
)
def test_a_rate_that_cannot_be_honoured_is_refused(
    arguments: dict[str, object], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        Rate(**{"limit": 5, "per_seconds": 60, **arguments})  # type: ignore[arg-type]


def test_a_burst_chooses_the_token_bucket() -> None:
    assert Rate(5, 60, burst=9).algorithm == "token-bucket"
    assert Rate(5, 60, burst=9).capacity == 9
    assert Rate(5, 60).effective_algorithm == "sliding-window"
    assert Rate(5, 60).capacity == 5
    assert Rate(2**25, 60, algorithm="token-bucket").limit ** 2 == MAX_BUCKET_PRODUCT


def test_a_default_algorithm_leaves_chosen_ones_alone() -> None:
    chosen = Rate(5, 60, algorithm="fixed-window")
    first, second = parse_rates(["9/day", chosen], algorithm="token-bucket")
    assert (first.algorithm, second) == ("token-bucket", chosen)
    with pytest.raises(ValueError, match="algorithm"):
        parse_rates("9/day", algorithm="leaky")


@given(limit=st.integers(1, MAX_LIMIT), period=st.integers(1, MAX_PERIOD))
def test_the_text_of_a_rate_reads_back(limit: int, period: int) -> None:
    rate = Rate(limit, period)
    assert parse_rates(str(rate)) == (rate,)


def test_texts() -> None:
    texts = [str(Rate(5, seconds)) for seconds in (1, 60, 900, 86_400, 90, 172_800)]
    assert texts == ["5/second", "5/minute", "5/15 minutes", "5/day", "5/90 seconds", "5/2 days"]


def test_a_decision_speaks_for_the_most_restrictive_rate() -> None:
    wide, tight = Rate(100, 60), Rate(5, 60)
    has_room = [RateState(wide, True, 90, 60.0, 0.0), RateState(tight, True, 3, 30.0, 0.0)]
    assert Decision.of(has_room).rate is tight
    assert Decision.of(has_room).remaining == 3
    refused = [RateState(wide, False, 0, 60.0, 50.0), RateState(tight, False, 0, 60.0, 10.0)]
    assert not Decision.of(refused).allowed
    assert Decision.of(refused).retry_after == 50.0
    assert Decision.of([has_room[0], refused[1]]).rate is tight
