"""Leases: at most so many at once, whichever process dies, whatever the clock does."""

from __future__ import annotations

import threading

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from flask_redis_guard.core.rates import Decision
from flask_redis_guard.errors import RedisUnavailable
from flask_redis_guard.limiting.keys import KeyMaker, Subject
from flask_redis_guard.limiting.slots import ConcurrencyLimiter, Lease
from tests.integration.limiting.conftest import ServerTime
from tests.integration.limiting.models import SECOND
from tests.integration.limiting.test_properties import trace_settings
from tests.support import RedisServer
from tests.support.clocked import Clocked


@pytest.fixture
def leases(store: redis.Redis, clock: ServerTime) -> ConcurrencyLimiter:
    store.flushall()
    return ConcurrencyLimiter(Clocked(store, clock), KeyMaker("guard:", b"s"))


def ask(
    leases: ConcurrencyLimiter, subject: Subject, limit: int, lease: int = 60, scope: str = ""
) -> Lease | Decision:
    return leases.acquire(leases.lease(subject, limit, lease, scope))


def renew(leases: ConcurrencyLimiter, lease: Lease) -> Decision | RedisUnavailable | None:
    ((_, answer, _),) = leases.renew([lease])
    return answer


def take(leases: ConcurrencyLimiter, limit: int = 2, lease: int = 60) -> Lease:
    found = ask(leases, "a", limit, lease)
    assert isinstance(found, Lease)
    return found


def test_places_are_taken_released_and_expire(
    leases: ConcurrencyLimiter, clock: ServerTime
) -> None:
    first = take(leases)
    clock.now += 10 * SECOND
    second = take(leases)
    assert (first.held, second.held) == (1, 2)
    refused = ask(leases, "a", 2)
    assert isinstance(refused, Decision)
    assert (refused.allowed, refused.remaining, refused.retry_after) == (False, 0, 50.0)
    assert isinstance(ask(leases, "b", 2), Lease)
    assert isinstance(ask(leases, "a", 2, scope="other"), Lease)
    assert leases.release(first)
    assert not leases.release(first)
    clock.now += 1
    third = take(leases)
    clock.now += 60 * SECOND - 1
    assert isinstance(ask(leases, "a", 2), Lease)  # the second has expired, the third not yet
    assert isinstance(ask(leases, "a", 2), Decision)
    assert isinstance(renew(leases, second), Decision)
    assert not leases.release(second)
    clock.now += 1
    assert renew(leases, third) is None  # expired, and taken anew
    assert isinstance(ask(leases, "a", 2), Decision)


def test_a_renewed_lease_lasts_a_full_lease_more(
    leases: ConcurrencyLimiter, clock: ServerTime
) -> None:
    held = take(leases, limit=1)
    for _ in range(5):
        clock.now += 59 * SECOND
        assert renew(leases, held) is None
    clock.now += 60 * SECOND - 1
    assert isinstance(ask(leases, "a", 1), Decision)
    clock.now += 1
    assert isinstance(ask(leases, "a", 1), Lease)


def test_a_clock_set_back_holds_no_place_longer_than_its_lease(
    leases: ConcurrencyLimiter, clock: ServerTime
) -> None:
    take(leases, lease=10)
    take(leases, lease=100)
    clock.now -= 10**13
    refused = ask(leases, "a", 2, 10)
    assert isinstance(refused, Decision)
    assert refused.retry_after == 10.0
    clock.now += 10 * SECOND
    assert isinstance(ask(leases, "a", 2, 10), Lease)
    clock.now += 10 * SECOND
    assert take(leases).held == 2  # the long one is held as long as it was granted for
    clock.now += 80 * SECOND
    assert take(leases, lease=100).held == 1


@trace_settings
@given(
    limit=st.integers(1, 4),
    steps=st.lists(
        st.tuples(st.sampled_from("aaarx"), st.integers(0, 4), st.integers(0, 12)), max_size=40
    ),
)
def test_never_more_than_the_limit_are_held(
    server: RedisServer, clock: ServerTime, limit: int, steps: list[tuple[str, int, int]]
) -> None:
    subject = clock.start(10**15)
    leases = ConcurrencyLimiter(Clocked(server.client(), clock), KeyMaker("guard:", None))
    held: list[tuple[Lease, int]] = []  # and when it expires
    for action, which, pause in steps:
        clock.now += pause * SECOND
        alive = [(lease, end) for lease, end in held if end > clock.now]
        if action == "a":
            seconds = 5 + which * 5
            found = ask(leases, subject, limit, seconds)
            assert isinstance(found, Lease) == (len(alive) < limit)
            if isinstance(found, Lease):
                assert found.held == len(alive) + 1
                held.append((found, clock.now + seconds * SECOND))
            else:
                first = min(end for _, end in alive)
                assert round(found.retry_after * 1e6) == first - clock.now
        elif which < len(held):
            lease, end = held[which]
            if action == "r":
                room = end > clock.now or len(alive) < limit
                assert (renew(leases, lease) is None) == room
                if room:
                    held[which] = lease, clock.now + lease.seconds * SECOND
            else:
                assert leases.release(lease) == (end > clock.now)
                del held[which]


def test_threads_together_hold_no_more_than_the_limit(redis_server: RedisServer) -> None:
    leases = ConcurrencyLimiter(redis_server.client(), KeyMaker("guard:", None))
    found: list[Lease | Decision] = []
    threads = [
        threading.Thread(target=lambda: found.append(ask(leases, "a", 5))) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    granted = [lease for lease in found if isinstance(lease, Lease)]
    assert len(granted) == 5
    assert sorted(lease.held for lease in granted) == [1, 2, 3, 4, 5]
    client = redis_server.client()
    (key,) = client.keys("*")
    assert 0 < client.pttl(key) <= 61_001


def test_bad_arguments_and_error_replies_grant_nothing(redis_server: RedisServer) -> None:
    client = redis_server.client()
    leases = ConcurrencyLimiter(client, KeyMaker("guard:", None))
    for limit, lease in ((0, 60), (10_001, 60), (5, 0), (5, 1.5), (True, 60)):
        with pytest.raises(ValueError, match="expected"):
            ask(leases, "a", limit, lease)  # type: ignore[arg-type]
    held = ask(leases, "a", 1)
    assert isinstance(held, Lease)
    client.set(held.key, "spoilt")
    with pytest.raises(RedisUnavailable) as caught:
        ask(leases, "a", 1)
    answer = renew(leases, held)
    assert isinstance(answer, RedisUnavailable)
    assert caught.value.reason == answer.reason == "rejected"


def test_many_leases_are_renewed_and_released_in_few_round_trips(redis_server: RedisServer) -> None:
    client = redis_server.client()
    leases = ConcurrencyLimiter(client, KeyMaker("guard:", None))
    held = [leases.lease(f"subject {number}", 1) for number in range(450)]
    spoilt, taken = held[7], held[8]
    client.set(spoilt.key, "spoilt")
    assert isinstance(ask(leases, "subject 8", 1), Lease)
    client.script_flush()
    before = client.info("stats")["total_reads_processed"]
    answers = [(lease, answer) for lease, answer, _ in leases.renew(held)]
    # A server reads 16 kilobytes at once, and the script was unknown.
    assert client.info("stats")["total_reads_processed"] - before < 40
    assert [lease for lease, _ in answers] == held
    for lease, answer in answers:
        expected = {spoilt: RedisUnavailable, taken: Decision}.get(lease, type(None))
        assert isinstance(answer, expected)
    assert client.zcard(held[0].key) == 1
    assert {type(answer) for _, answer, _ in leases.release_all(held)} == {
        type(None),
        RedisUnavailable,
    }
    assert client.zcard(held[0].key) == 0
