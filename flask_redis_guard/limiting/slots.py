"""At most so many at once: leases that a dead worker cannot keep."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from flask_redis_guard.client.script import ClientSource, Script, client_getter, read_lua
from flask_redis_guard.core.rates import MAX_PERIOD, Decision, Rate, RateState
from flask_redis_guard.errors import RedisUnavailable
from flask_redis_guard.limiting.keys import KeyMaker, Subject

_LEASE: Final = Script(
    "concurrency limit", read_lua(__package__, "clock.lua", "codec.lua", "lease.lua")
)

#: A subject's leases are members of one set; this bounds it.
MAX_CONCURRENT: Final = 10_000

#: Leases in one round trip: they take a server less than ten milliseconds.
BATCH: Final = 200


@dataclass(frozen=True, slots=True)
class Lease:
    """A place held until it is released, or until it expires unless renewed.

    :param key: the counter it belongs to.
    :param id: its random name.
    :param limit: how many may be held at once.
    :param held: how many were held when this one was granted, itself included.
    :param seconds: how long it lasts from each renewal.
    """

    key: bytes
    id: bytes
    limit: int
    held: int
    seconds: int


#: What became of one of many leases, and the monotonic time at which Redis was asked.
Answer = tuple[Lease, Decision | RedisUnavailable | None, float]


class ConcurrencyLimiter:
    """Grants leases in Redis or Valkey, with the server's clock. One script call each.

    :param client: a redis-py client, or a callable that gives one.
    :param keys: names the counters; the one of the app's rate limiter.
    """

    def __init__(self, client: ClientSource, keys: KeyMaker) -> None:
        self._client = client_getter(client)
        self._keys = keys

    def lease(self, key: Subject, limit: int, seconds: int = 60, scope: str = "") -> Lease:
        """Return a lease that is to be acquired.

        :param key: who is counted.
        :param limit: places of the subject in this scope, at most 10 000.
        :param seconds: after which the place is free again unless renewed.
        :param scope: what is counted.
        :raises ValueError: for a bad limit or lease.
        """
        Rate(limit, seconds)
        if limit > MAX_CONCURRENT:
            raise ValueError(f"limit: expected at most {MAX_CONCURRENT}, not {limit}")
        # The lease is no part of the identity: routes with different leases may share places.
        name = self._keys.of(Rate(limit, MAX_PERIOD), key, scope, kind=b"lease")
        lease_id = b"%b:%d" % (secrets.token_urlsafe(12).encode(), seconds * 1_000_000)
        return Lease(name, lease_id, limit, 0, seconds)

    def acquire(self, lease: Lease) -> Lease | Decision:
        """Take a place.

        :returns: the lease; or, all places being taken, a refusal whose ``retry_after`` is the time
            until the first of them expires. It may be released before.
        :raises RedisUnavailable: if Redis gave no answer, or an error.
        """
        answer = _LEASE(self._client(), *self._call(lease, b"acquire"), 3)
        return _refusal(lease, answer) or replace(lease, held=answer[1])

    def release(self, lease: Lease) -> bool:
        """Free the place.

        :returns: ``False`` if it had expired before.
        :raises RedisUnavailable: if Redis gave no answer, or an error; it expires by itself.
        """
        return _LEASE(self._client(), *self._call(lease, b"release"), 3)[0] == 1

    def renew(self, leases: Iterable[Lease]) -> Iterator[Answer]:
        """Let leases last from now on again, many in one round trip.

        One that has expired, or that Redis lost, takes a place anew if there is one.

        :returns: for each lease ``None`` if it is held; a refusal, if not; or the error.
        """
        for lease, answer, sent in self._all(leases, b"acquire"):
            if isinstance(answer, RedisUnavailable):
                yield lease, answer, sent
            else:
                yield lease, _refusal(lease, answer), sent

    def release_all(self, leases: Iterable[Lease]) -> Iterator[Answer]:
        """Free places, many in one round trip.

        :returns: for each lease ``None`` if it is not held any more, or the error.
        """
        for lease, answer, sent in self._all(leases, b"release"):
            yield lease, answer if isinstance(answer, RedisUnavailable) else None, sent

    def _all(
        self, leases: Iterable[Lease], mode: bytes
    ) -> Iterator[tuple[Lease, list[int] | RedisUnavailable, float]]:
        client = self._client()
        for group in self._by_server(client, leases):
            failed: RedisUnavailable | None = None
            for start in range(0, len(group), BATCH):
                batch = group[start : start + BATCH]
                sent = time.monotonic()
                if failed is None:  # otherwise each batch would wait for a server that is away
                    try:
                        answers = _LEASE.many(client, [self._call(one, mode) for one in batch], 3)
                    except RedisUnavailable as error:
                        failed = error
                for number, lease in enumerate(batch):
                    yield lease, failed or answers[number], sent

    def _by_server(self, client: Any, leases: Iterable[Lease]) -> Iterable[list[Lease]]:
        find = getattr(client, "get_node_from_key", None)
        if find is None:
            return [list(leases)]
        groups: dict[str, list[Lease]] = {}
        for lease in leases:
            groups.setdefault(find(lease.key).name, []).append(lease)
        return groups.values()

    def _call(self, lease: Lease, mode: bytes) -> tuple[list[bytes], list[bytes]]:
        numbers = (b"%d" % number for number in (lease.seconds * 1_000_000, lease.limit))
        return [lease.key], [mode, lease.id, *numbers]


def _refusal(lease: Lease, answer: list[int]) -> Decision | None:
    done, _, first = answer
    rate = Rate(lease.limit, lease.seconds, name="concurrency")
    return None if done else Decision.of([RateState(rate, False, 0, first / 1e6, first / 1e6)])
