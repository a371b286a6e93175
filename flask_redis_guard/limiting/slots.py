"""At most so many at once: leases that a dead worker cannot keep."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from flask_redis_guard.client.script import ClientSource, Script, client_getter, told_time
from flask_redis_guard.core.rates import MAX_PERIOD, Decision, Rate, RateState
from flask_redis_guard.limiting.keys import KeyMaker, Subject

_LEASE: Final = Script(
    "concurrency limit", "clock.lua", "codec.lua", "lease.lua", package=__package__
)

#: A subject's leases are members of one set; this bounds it.
MAX_CONCURRENT: Final = 10_000


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


class ConcurrencyLimiter:
    """Grants leases in Redis or Valkey, with the server's clock. One script call each.

    :param client: a redis-py client, or a callable that gives one.
    :param keys: names the counters; the one of the app's rate limiter.
    :param server_time: replaces the server's clock, in microseconds. For tests only.
    """

    def __init__(
        self,
        client: ClientSource,
        keys: KeyMaker,
        *,
        server_time: Callable[[], int] | None = None,
    ) -> None:
        self._client = client_getter(client)
        self._keys = keys
        self._server_time = server_time

    def acquire(
        self, key: Subject, limit: int, lease: int = 60, scope: str = ""
    ) -> Lease | Decision:
        """Take a place for a subject.

        :param key: who is counted.
        :param limit: places of the subject in this scope, at most 10 000.
        :param lease: seconds after which the place is free again unless renewed.
        :param scope: what is counted.
        :returns: the lease; or, all places being taken, a refusal whose ``retry_after`` is the time
            until the first of them expires. It may be released before.
        :raises RedisUnavailable: if Redis gave no answer, or an error.
        :raises ValueError: for a bad limit or lease.
        """
        rate = Rate(limit, lease, name="concurrency")
        if limit > MAX_CONCURRENT:
            raise ValueError(f"limit: expected at most {MAX_CONCURRENT}, not {limit}")
        # The lease is no part of the identity: routes with different leases may share places.
        name = self._keys.of(Rate(limit, MAX_PERIOD), key, scope, kind=b"lease")
        lease_id = b"%b:%d" % (secrets.token_urlsafe(12).encode(), lease * 1_000_000)
        granted = Lease(name, lease_id, limit, 0, lease)
        done, held, first = self._call(granted, b"acquire")
        if done:
            return Lease(name, lease_id, limit, held, lease)
        return Decision.of([RateState(rate, False, 0, first / 1e6, first / 1e6)])

    def renew(self, lease: Lease) -> bool:
        """Let it last from now on again.

        :returns: ``False`` if it has expired: the place may be another's already.
        :raises RedisUnavailable: if Redis gave no answer, or an error.
        """
        return self._call(lease, b"renew")[0] == 1

    def release(self, lease: Lease) -> bool:
        """Free the place.

        :returns: ``False`` if it had expired before.
        :raises RedisUnavailable: if Redis gave no answer, or an error; it expires by itself.
        """
        return self._call(lease, b"release")[0] == 1

    def _call(self, lease: Lease, mode: bytes) -> list[int]:
        numbers = (b"%d" % number for number in (lease.seconds * 1_000_000, lease.limit))
        args = [mode, lease.id, *numbers, *told_time(self._server_time)]
        return _LEASE(self._client(), [lease.key], args, 3)
