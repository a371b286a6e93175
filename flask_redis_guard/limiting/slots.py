"""At most so many at once: places, and the leases in Redis that a dead worker cannot keep."""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from redis.exceptions import SlotNotCoveredError

from flask_redis_guard.client.outcomes import goes_on
from flask_redis_guard.client.script import ClientSource, Script, client_getter, guarded, read_lua
from flask_redis_guard.core.process import ProcessLock, Worker, watch_forks
from flask_redis_guard.core.rates import MAX_PERIOD, Decision, Rate, RateState
from flask_redis_guard.errors import CircuitOpen, RateLimitExceeded, RedisUnavailable
from flask_redis_guard.limiting.keys import KeyMaker, Subject

logger = logging.getLogger("flask_redis_guard")

_LEASE: Final = Script(
    "concurrency limit", read_lua(__package__, "clock.lua", "codec.lua", "lease.lua")
)

#: A subject's leases are members of one set; this bounds it.
MAX_CONCURRENT: Final = 10_000

#: Leases in one round trip: they take a server less than ten milliseconds.
BATCH: Final = 200

#: Renewals in the length of a lease. All but the last may fail before the place is given up.
RENEWALS: Final = 4

#: The part of the time between two renewals by which one may be early, to go with others.
EARLY: Final = 0.25

#: Seconds between two tries at giving back what could not be given back before.
RETURN_INTERVAL: Final = 1.0

#: Leases that are remembered until they can be given back. Others end by themselves.
MOST_OWED: Final = 10_000

Refusal = RateLimitExceeded | RedisUnavailable


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
        client, sent = self._client(), time.monotonic()
        groups, lost = self._by_server(client, leases)
        for lease, error in lost:
            yield lease, error, sent
        for group in groups:
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

    def _by_server(
        self, client: Any, leases: Iterable[Lease]
    ) -> tuple[Iterable[list[Lease]], list[tuple[Lease, RedisUnavailable]]]:
        """Group leases by the primary that keeps them: one that is away fails its own only.

        :returns: the groups; and what is on no primary, or on none that is known.
        """
        find = getattr(client, "get_node_from_key", None)
        if find is None:
            return [list(leases)], []
        groups: dict[str, list[Lease]] = {}
        lost: list[tuple[Lease, RedisUnavailable]] = []
        unknown: RedisUnavailable | None = None  # the cluster itself, which is asked once only
        for lease in leases:
            if unknown is None:
                try:
                    node = guarded(_LEASE.operation, find, lease.key)
                except RedisUnavailable as error:
                    lost.append((lease, error))
                    if not isinstance(error.__cause__, SlotNotCoveredError):  # of this key alone
                        unknown = error
                else:
                    groups.setdefault(node.name, []).append(lease)
            else:
                lost.append((lease, unknown))
        return groups.values(), lost

    def _call(self, lease: Lease, mode: bytes) -> tuple[list[bytes], list[bytes]]:
        numbers = (b"%d" % number for number in (lease.seconds * 1_000_000, lease.limit))
        return [lease.key], [mode, lease.id, *numbers]


def _refusal(lease: Lease, answer: list[int]) -> Decision | None:
    done, _, first = answer
    rate = Rate(lease.limit, lease.seconds, name="concurrency")
    return None if done else Decision.of([RateState(rate, False, 0, first / 1e6, first / 1e6)])


@dataclass(eq=False)
class Place:
    """One of a subject's places, held by one connection.

    :param subject: who holds it.
    :param limit: places of the subject.
    :param seconds: the length of its leases.
    :param scope: what is counted.
    :param on_outage: ``deny``, ``local`` or ``allow``.
    """

    subject: Subject
    limit: int
    seconds: int
    scope: str
    on_outage: str = "deny"
    #: What is counted in Redis; not yet, while Redis is away and ``on_outage`` admitted it.
    lease: Lease = field(init=False)
    #: Monotonic time of the next renewal, and that at which the lease is over.
    due: float = 0.0
    until: float = 0.0
    #: Whether the last renewal had no answer.
    missed: bool = False
    #: Asked before a renewal: a connection that is gone needs none.
    alive: Callable[[], bool] = lambda: True
    #: Called once, in the background, if the place cannot be held any longer.
    on_lost: Callable[[Refusal], None] | None = None
    #: Why it could not be held.
    lost: Refusal | None = None

    @property
    def identity(self) -> tuple[str, Subject]:
        """What it is counted under."""
        return self.scope, self.subject

    @property
    def pause(self) -> float:
        """Seconds between two renewals."""
        return self.seconds / RENEWALS


class PlaceKeeper:
    """Takes places and holds them, with one background thread in each process that has any.

    The thread ends with the last place, and when nothing is left to be given back. Under gevent it
    is a greenlet.

    :param limiter: gives what grants the leases.
    :param processes: how many processes share a limit while Redis is away.
    """

    def __init__(self, limiter: Callable[[], ConcurrencyLimiter], *, processes: int = 1) -> None:
        self._limiter = limiter
        self._processes = processes
        self._lock = ProcessLock()
        self._worker = Worker("redis-guard-places", self._turn)
        self.after_fork()
        watch_forks(self)

    def __len__(self) -> int:
        return len(self._held)

    def after_fork(self) -> None:
        """Hold nothing: the parent process holds what it has, and gives back what it owes."""
        self._held: dict[Place, None] = {}
        self._counts: Counter[tuple[str, Subject]] = Counter()
        #: Leases to be given back, and the monotonic time at which they are over anyway.
        self._owed: dict[Lease, float] = {}
        #: When that is tried again, and whether it was told that it is needed.
        self._return_at = 0.0
        self._told = False
        #: When the thread has something to do.
        self._next = float("inf")

    def take(self, place: Place) -> Decision | None:
        """Take a place for a connection, and hold it from now on.

        :returns: ``None`` if it is taken, else the refusal.
        :raises RedisUnavailable: if it cannot be told and the place's ``on_outage`` is ``deny``.
        """
        sent = time.monotonic()
        share = None
        what = place.subject, place.limit, place.seconds, place.scope
        try:
            answer = self.acquire(*what)
        except RedisUnavailable as error:
            if not goes_on(error, place.on_outage):
                raise
            if place.on_outage == "local":
                share = max(1, place.limit // self._processes)
            answer = self._limiter().lease(*what)
            place.missed = True
        if isinstance(answer, Decision):
            return answer
        place.lease = answer
        place.due, place.until = sent + place.pause, sent + place.seconds
        if self._hold(place, share):
            return None
        rate = Rate(place.limit, place.seconds, name="concurrency")
        return Decision.of([RateState(rate, False, 0, place.seconds, place.seconds)])

    def free(self, place: Place) -> None:
        """Give a place back, now or when Redis answers again."""
        if self._let_go(place):
            self.release(place.lease)

    def acquire(self, subject: Subject, limit: int, seconds: int, scope: str) -> Lease | Decision:
        """Take a place that nobody renews; what it may have taken without an answer is given back.

        :raises RedisUnavailable: if Redis gave no answer, or an error.
        """
        limiter = self._limiter()
        lease = limiter.lease(subject, limit, seconds, scope)
        try:
            return limiter.acquire(lease)
        except CircuitOpen:
            raise  # nothing was asked
        except BaseException as error:  # the caller may be interrupted or killed as well
            self._owe(lease, error)
            raise

    def release(self, lease: Lease) -> None:
        """Give a lease back, now or when Redis answers again."""
        try:
            self._limiter().release(lease)
        except RedisUnavailable as error:
            self._owe(lease, error)
        except BaseException as error:
            self._owe(lease, error)
            raise

    def recovered(self) -> None:
        """Catch up at once with what could not be done while Redis was away."""
        with self._lock:
            self._return_at = 0.0
            for place in self._held:
                if place.missed:
                    place.due = 0.0
            busy = self._held or self._owed
        if busy:
            self._worker.wake()

    def _owe(self, lease: Lease, error: BaseException) -> None:
        """Remember a lease that Redis may hold although nobody has it."""
        now = time.monotonic()
        with self._lock:
            if not self._owed:
                self._return_at = now + RETURN_INTERVAL
            self._owed[lease] = now + lease.seconds
            if len(self._owed) > MOST_OWED:
                del self._owed[next(iter(self._owed))]
            tell = isinstance(error, RedisUnavailable) and not self._told
            self._told = self._told or tell
        if isinstance(error, RedisUnavailable) and tell:
            logger.warning(
                "Places of concurrency limits cannot be freed until Redis is back (%s)",
                error.reason,
            )
        self._worker.wake()

    def _hold(self, place: Place, share: int | None) -> bool:
        with self._lock:
            if share is not None and self._counts[place.identity] >= share:
                return False
            self._held[place] = None
            self._counts[place.identity] += 1
            renewed = self._worker.running and self._next <= place.due
        if not renewed and not self._worker.wake():
            self.free(place)
            raise RedisUnavailable("CONCURRENCY RENEW", "limit-failed")
        return True

    def _let_go(self, place: Place) -> bool:
        with self._lock:
            if place not in self._held:
                return False
            del self._held[place]
            self._counts[place.identity] -= 1
            if not self._counts[place.identity]:
                del self._counts[place.identity]
            last = not self._held and self._worker.running
        if last:
            self._worker.wake()
        return True

    def _turn(self) -> float | None:
        try:
            self._renew_due()
            self._give_back()
        except Exception:  # a bug: what it kept from being renewed is given up
            logger.exception("Places of concurrency limits could not be renewed")
            for place in [place for place in list(self._held) if place.due <= time.monotonic()]:
                self._lose(place, RedisUnavailable("concurrency limit", "limit-failed"))
        with self._lock:
            self._told = self._told and bool(self._owed)
            self._next = min((place.due for place in self._held), default=float("inf"))
            if self._owed:
                self._next = min(self._next, self._return_at)
            pause = self._next - time.monotonic()
            return max(0.0, pause) if self._held or self._owed else None

    def _renew_due(self) -> None:
        now = time.monotonic()
        places = list(self._held)
        if not any(place.due <= now for place in places):
            return
        due: dict[Lease, Place] = {}
        for place in places:
            if place.due <= now + place.pause * EARLY and self._lives(place):
                due[place.lease] = place
        for lease, answer, sent in self._limiter().renew(due):
            self._answered(due[lease], answer, sent)

    def _lives(self, place: Place) -> bool:
        try:
            if place.alive():
                return True
        except Exception:
            logger.exception("It cannot be told whether the connection of a place is alive")
            self._lose(place, RedisUnavailable("concurrency limit", "limit-failed"))
            return False
        self.free(place)
        return False

    def _answered(
        self, place: Place, answer: Decision | RedisUnavailable | None, sent: float
    ) -> None:
        if answer is None:
            place.missed = False
            place.due, place.until = sent + place.pause, sent + place.seconds
            if place not in self._held:  # freed meanwhile, perhaps before it was renewed
                self.release(place.lease)
        elif isinstance(answer, Decision):  # it had expired, or Redis lost it, and others came
            self._lose(place, RateLimitExceeded(answer))
        else:
            place.missed = True
            place.due = time.monotonic() + place.pause
            if place not in self._held:
                self._owe(place.lease, answer)
            elif place.on_outage == "deny" and place.due >= place.until:
                self._lose(place, answer)

    def _give_back(self) -> None:
        now = time.monotonic()
        if now < self._return_at:
            return
        with self._lock:
            self._return_at = now + RETURN_INTERVAL
            for lease in [lease for lease, over in self._owed.items() if over <= now]:
                del self._owed[lease]
            owed = list(self._owed)
        for lease, answer, _ in self._limiter().release_all(owed):
            if answer is None:
                self._owed.pop(lease, None)

    def _lose(self, place: Place, error: Refusal) -> None:
        held = self._let_go(place)
        if isinstance(error, RedisUnavailable):  # a renewal without an answer may have been made
            self._owe(place.lease, error)
        place.lost = error
        if held and place.on_lost is not None:
            try:
                place.on_lost(error)
            except Exception:
                logger.exception("A connection that lost its place could not be closed")
