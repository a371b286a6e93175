"""What the limiter asks of a server, how often, and what it makes of every kind of answer."""

from __future__ import annotations

import threading

import pytest
import redis

from flask_redis_guard.core.rates import Decision, Rate, parse_rates
from flask_redis_guard.errors import RedisUnavailable
from flask_redis_guard.limiting.limiter import RateLimiter
from flask_redis_guard.limiting.plan import Charge
from tests.integration.limiting.conftest import ServerTime
from tests.support import ClusterSetup, RedisServer
from tests.support.clocked import Clocked

ALGORITHMS = ["sliding-window", "token-bucket", "fixed-window"]


def commands_of(server: RedisServer) -> int:
    """Commands that clients sent; those of scripts are not among them."""
    stats = server.client().info("commandstats")
    sent = ("evalsha", "eval", "script|load", "multi", "exec")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in sent)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_command_decides_and_none_repeats_a_refusal(
    redis_server: RedisServer, algorithm: str
) -> None:
    limiter = RateLimiter(redis_server.client())
    rates = parse_rates("3/minute; 100/hour; 1000/day", algorithm=algorithm)
    limiter.hit(rates, "warm up the script")
    before = commands_of(redis_server)
    for _ in range(3):
        assert limiter.hit(rates, "a").allowed
    assert commands_of(redis_server) == before + 3
    assert not limiter.hit(rates, "a").allowed
    assert commands_of(redis_server) == before + 4
    for _ in range(50):
        refused = limiter.hit(rates, "a")
        assert not refused.allowed
        assert refused.remembered
        assert len(refused.states) == 3
    assert commands_of(redis_server) == before + 4
    assert limiter.denials.hits == 50
    assert limiter.hit(rates, "b").allowed


def test_an_unknown_script_costs_two_round_trips_once(redis_server: RedisServer) -> None:
    limiter = RateLimiter(redis_server.client())
    assert limiter.hit("5/minute", "a").remaining == 4
    redis_server.client().script_flush()
    before = commands_of(redis_server)
    assert limiter.hit("5/minute", "a").remaining == 3
    assert commands_of(redis_server) == before + 2
    assert limiter.hit("5/minute", "a").remaining == 2
    assert commands_of(redis_server) == before + 3


@pytest.mark.parametrize(
    ("rate", "bytes_promised"),
    [
        (Rate(1_000_000, 3600), 300),
        (Rate(16, 3600), 300),
        (Rate(1_000_000, 3600, algorithm="token-bucket"), 120),
        (Rate(1_000_000, 3600, algorithm="fixed-window"), 120),
    ],
    ids=["sliding-window", "exact-window", "token-bucket", "fixed-window"],
)
def test_memory_of_a_key_is_as_promised(
    redis_server: RedisServer, rate: Rate, bytes_promised: int
) -> None:
    client = redis_server.client()
    limiter = RateLimiter(client)
    for _ in range(16):
        charge = Charge((rate,), "2001:db8:85a3:8d3:1319:8a2e:370:7348", refundable=True)
        limiter.judge([charge])
    limiter.refund(*limiter.judge([charge]))
    (key,) = client.keys("guard:*")
    used = client.memory_usage(key, samples=0)
    assert used is not None
    assert used <= bytes_promised
    assert client.pttl(key) > 0


def test_all_keys_expire_soon_after_what_they_count(redis_server: RedisServer) -> None:
    client = redis_server.client()
    limiter = RateLimiter(client)
    for algorithm in ALGORITHMS:
        limiter.hit(parse_rates("5/minute; 50/minute", algorithm=algorithm), "a")
    for key in client.keys("guard:*"):
        assert 0 < client.pttl(key) <= 60_000 * 17 / 16 + 1001


def test_the_in_memory_store_decides_as_a_server_does(
    redis_server: RedisServer, store: redis.Redis, clock: ServerTime
) -> None:
    limiters = [
        RateLimiter(Clocked(client, clock), denial_cache_size=0)
        for client in (redis_server.client(), store)
    ]
    clock.now = 1_700_000_000_123_456
    store.flushall()
    for step in range(120):
        rates = (
            *parse_rates("7/minute; 40/hour"),
            Rate(30, 60, algorithm="fixed-window"),
            Rate(7, 30, burst=9),
        )
        charge = Charge(rates, "a", 1 + step % 3, refundable=True)
        first, second = ([*limiter.judge([charge])] for limiter in limiters)
        assert first == second
        if step % 7 == 0:
            for limiter, decisions in zip(limiters, (first, second), strict=True):
                limiter.refund(*decisions)
        clock.now += 3_333_333 - (10_000_000 if step % 50 == 49 else 0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_reset_frees_a_subject_and_reset_all_frees_everyone(
    redis_server: RedisServer, algorithm: str
) -> None:
    limiter = RateLimiter(redis_server.client(), prefix="a*[b]?:")
    rates = parse_rates("1/hour; 20/day", algorithm=algorithm)
    for subject in ("a", "b"):
        assert limiter.hit(rates, subject, scope="x").allowed
        assert not limiter.hit(rates, subject, scope="x").allowed
    limiter.hit(rates, "a", scope="other")
    limiter.reset(rates, "a", scope="x")
    assert limiter.hit(rates, "a", scope="x").allowed
    assert not limiter.hit(rates, "b", scope="x").allowed
    assert limiter.reset_all(rates, scope="x") == 4
    assert limiter.hit(rates, "b", scope="x").allowed
    assert not limiter.hit(rates, "a", scope="other").allowed


def test_peek_neither_consumes_nor_believes_a_remembered_refusal(
    redis_server: RedisServer,
) -> None:
    limiter, other = (RateLimiter(redis_server.client()) for _ in range(2))
    assert limiter.peek("1/hour", "a").allowed
    assert limiter.hit("1/hour", "a").allowed
    assert not limiter.hit("1/hour", "a").allowed
    other.reset("1/hour", "a")
    assert limiter.peek("1/hour", "a").allowed
    assert not limiter.hit("1/hour", "a").allowed  # remembered for up to a second


def test_a_limit_named_twice_counts_once_with_the_greater_cost(redis_server: RedisServer) -> None:
    limiter = RateLimiter(redis_server.client())
    rates = parse_rates("10/hour")
    decisions = limiter.judge([Charge(rates, "a", 2), Charge(rates, "a", 3), Charge(rates, "b")])
    assert [d.remaining for d in decisions] == [7, 7, 9]


def test_a_shared_counter_is_refunded_once_and_only_if_all_agree(
    redis_server: RedisServer,
) -> None:
    limiter = RateLimiter(redis_server.client())
    rates = parse_rates("10/hour")
    both = [Charge(rates, "a", 2, refundable=True), Charge(rates, "a", 3, refundable=True)]
    limiter.refund(*limiter.judge(both))
    assert limiter.peek(rates, "a").remaining == 10
    limiter.refund(*limiter.judge([*both, Charge(rates, "a")]))
    assert limiter.peek(rates, "a").remaining == 7


def test_a_counter_under_two_names_is_refunded_once(redis_server: RedisServer) -> None:
    limiter = RateLimiter(redis_server.client())
    twice = (Rate(20, 3600), Rate(20, 3600, name="failures"))
    limiter.hit(twice, "a", 5)
    limiter.refund(*limiter.judge([Charge(twice, "a", 2, refundable=True)]))
    assert limiter.peek(twice, "a").remaining == 15


def test_what_was_charged_in_the_process_is_given_back_there(redis_server: RedisServer) -> None:
    limiter = RateLimiter(redis_server.client())
    spent = Charge((Rate(3, 3600, burst=3),), "a", refundable=True)
    for _ in range(3):
        limiter.judge([spent])
    locally = [limiter.local.judge([spent])[0] for _ in range(3)]
    assert all(decision.allowed for decision in locally)
    limiter.refund(*locally)
    assert limiter.local.judge([spent])[0].remaining == 2
    assert limiter.peek(spent.rates, "a").remaining == 0


def test_a_shadow_counts_but_refuses_nothing(redis_server: RedisServer) -> None:
    limiter = RateLimiter(redis_server.client())
    shadow = Charge(parse_rates("2/hour; 3/hour"), "a", shadow=True)
    enforced = Charge(parse_rates("4/hour"), "a")
    seen = []
    for _ in range(6):
        real, shown = limiter.judge([enforced, shadow])
        seen.append((real.allowed, shown.allowed))
    assert seen[:5] == [(True, True)] * 2 + [(True, False)] * 2 + [(False, False)]
    assert limiter.peek("3/hour", "a").remaining == 1  # all of a shadow is charged, or none
    assert limiter.peek("2/hour", "a").remaining == 0


def test_no_charge_is_charged_for_what_another_refuses(redis_server: RedisServer) -> None:
    limiter = RateLimiter(redis_server.client())
    assert limiter.judge([]) == []
    limiter.hit("1/hour", "tight")
    charges = [
        Charge(parse_rates("10/hour"), "wide"),
        Charge(parse_rates("1/hour"), "tight"),
        Charge(parse_rates("5/hour"), "shadow", shadow=True),
    ]
    wide, tight, shadow = limiter.judge(charges)
    assert (wide.allowed, tight.allowed, shadow.allowed) == (True, False, True)
    assert limiter.peek("10/hour", "wide").remaining == 10
    assert limiter.peek("5/hour", "shadow").remaining == 5
    remembered = limiter.judge(charges)
    assert all(d.remembered for d in remembered)
    assert [d.allowed for d in remembered] == [True, False, True]


def test_a_charge_unknown_to_a_remembered_refusal_has_no_states(
    redis_server: RedisServer,
) -> None:
    limiter = RateLimiter(redis_server.client())
    tight = Charge(parse_rates("1/hour"), "a")
    limiter.judge([tight])
    limiter.judge([tight])
    unknown, refused = limiter.judge([Charge(parse_rates("9/hour"), "b"), tight])
    assert (unknown.states, unknown.remembered) == ((), True)
    assert (refused.allowed, len(refused.states)) == (False, 1)


def test_refundable_charges_do_not_use_remembered_refusals(redis_server: RedisServer) -> None:
    limiter, other = (RateLimiter(redis_server.client()) for _ in range(2))
    charge = Charge(parse_rates("1/hour"), "a", refundable=True)
    held = other.judge([charge])
    assert not limiter.judge([charge])[0].allowed
    other.refund(*held)
    assert limiter.judge([charge])[0].allowed
    assert len(limiter.denials) == 0


def test_a_cost_above_the_limit_never_fits(redis_server: RedisServer) -> None:
    limiter = RateLimiter(redis_server.client())
    for algorithm in ALGORITHMS:
        for text in ("5/minute", "50/minute"):
            refused = limiter.hit(parse_rates(text, algorithm=algorithm), "a", cost=10**30)
            assert (refused.allowed, refused.retry_after) == (False, 60.0)
            assert refused.remaining == refused.limit


@pytest.mark.parametrize("cost", [0, -1, 1.0, True, None, "1"])
def test_an_odd_cost_is_not_taken_for_a_free_one(redis_server: RedisServer, cost: object) -> None:
    limiter = RateLimiter(redis_server.client())
    with pytest.raises(ValueError, match="cost: expected a positive whole number"):
        limiter.hit("5/minute", "a", cost=cost)  # type: ignore[arg-type]


def test_every_error_reply_refuses(redis_server: RedisServer) -> None:
    client = redis_server.client()
    limiter = RateLimiter(client)
    limiter.hit("5/minute", "a")
    (key,) = client.keys("guard:*")
    for spoil in (lambda: client.lpush(key, "x"), lambda: client.set(key, "x" * 10)):
        client.delete(key)
        spoil()
        with pytest.raises(RedisUnavailable) as caught:
            limiter.hit("5/minute", "a")
        assert caught.value.reason == "rejected"
    client.config_set("maxmemory", "1")
    try:
        with pytest.raises(RedisUnavailable) as caught:
            limiter.hit("5/minute", "b")
        assert caught.value.reason == "out-of-memory"
    finally:
        client.config_set("maxmemory", "0")


def test_without_a_server_nothing_is_admitted(own_server: RedisServer) -> None:
    limiter = RateLimiter(own_server.client(retry=None, socket_timeout=0.3))
    assert limiter.hit("5/minute", "a").allowed
    own_server.pause()
    with pytest.raises(RedisUnavailable) as caught:
        limiter.hit("5/minute", "a")
    assert caught.value.reason == "timeout"
    own_server.kill()
    with pytest.raises(RedisUnavailable) as caught:
        limiter.hit("5/minute", "a")
    assert caught.value.reason == "connection"


def test_a_flood_asks_once_a_second(redis_server: RedisServer) -> None:
    time = 100.0
    limiter = RateLimiter(redis_server.client(), monotonic=lambda: time)
    limiter.hit("1/hour", "a")
    before = commands_of(redis_server)
    for _ in range(50):
        decisions: list[Decision] = []
        flood = [
            threading.Thread(target=lambda to=decisions: to.append(limiter.hit("1/hour", "a")))
            for _ in range(1 if time == 100.0 else 8)
        ]
        for thread in flood:
            thread.start()
        for thread in flood:
            thread.join()
        assert not any(d.allowed for d in decisions)
        time += 0.1
    assert commands_of(redis_server) == before + 5


@pytest.fixture(scope="module")
def cluster(cluster_setup: ClusterSetup) -> redis.RedisCluster:
    return cluster_setup.client()


def test_on_a_cluster_a_refused_request_gives_back_what_it_took(
    cluster: redis.RedisCluster,
) -> None:
    limiter = RateLimiter(cluster, denial_cache_size=0)
    rates = parse_rates("10/hour; 100/day")
    subjects = [f"s{i}" for i in range(6)]  # some of them on different nodes
    charges = [Charge(rates, subject) for subject in subjects]
    assert all(d.allowed for d in limiter.judge(charges))
    tight = Charge(parse_rates("1/hour"), "tight")
    assert all(d.allowed for d in limiter.judge([*charges, tight]))
    decisions = limiter.judge([*charges[:3], tight, *charges[3:]])
    assert [d.allowed for d in decisions] == [True] * 3 + [False] + [True] * 3
    for decision in (*decisions[:3], *decisions[4:]):
        assert decision.remaining == 8
    for subject in subjects:
        assert limiter.peek(rates, subject).remaining == 8
    refundable = [Charge(rates, subject, refundable=True) for subject in subjects]
    limiter.refund(*limiter.judge(refundable))
    assert limiter.peek(rates, subjects[0]).remaining == 8
    limiter.reset(rates, subjects[0])
    assert limiter.peek(rates, subjects[0]).remaining == 10
    assert limiter.reset_all(rates) == 10


def test_on_a_cluster_what_was_taken_is_given_back_when_a_later_call_fails(
    cluster: redis.RedisCluster,
) -> None:
    limiter = RateLimiter(cluster, denial_cache_size=0)
    rates = parse_rates("20/hour")
    cluster.rpush(limiter.keys.of(rates[0], "spoilt", ""), "not a counter")
    charges = [Charge(rates, subject) for subject in ("one", "two", "spoilt", "three")]
    with pytest.raises(RedisUnavailable) as caught:
        limiter.judge(charges)
    assert caught.value.reason == "rejected"
    for subject in ("one", "two", "three"):
        assert limiter.peek(rates, subject).remaining == 20
