"""Places of connections that stay open: leases renewed in the background until they are freed."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from flask_redis_guard.core.process import ProcessLock
from flask_redis_guard.core.rates import Decision, Rate, RateState
from flask_redis_guard.errors import RateLimitExceeded, RedisUnavailable
from flask_redis_guard.limiting.keys import Subject
from flask_redis_guard.limiting.slots import ConcurrencyLimiter, Lease

logger = logging.getLogger("flask_redis_guard")

#: Renewals in the length of a lease. All but the last may fail before the place is given up.
RENEWALS: Final = 4

Refusal = RateLimitExceeded | RedisUnavailable


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
    #: ``None`` while Redis is away and ``on_outage`` admitted it all the same.
    lease: Lease | None = None
    #: Monotonic time of the next renewal, and that at which the lease is over.
    due: float = 0.0
    until: float = 0.0
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

    def grant(self, lease: Lease | None, sent: float) -> None:
        """Take over a lease that was asked for at a monotonic time."""
        self.lease = lease
        self.due = sent + self.seconds / RENEWALS
        self.until = sent + self.seconds


class PlaceKeeper:
    """Takes places and holds them, with one background thread in each process that has any.

    The thread ends with the last place. Under gevent it is a greenlet.

    :param limiter: gives what grants the leases.
    :param processes: how many processes share a limit while Redis is away.
    """

    def __init__(self, limiter: Callable[[], ConcurrencyLimiter], *, processes: int = 1) -> None:
        self._limiter = limiter
        self._processes = processes
        self._lock = ProcessLock()
        self._pid: int | None = None
        self._held: dict[Place, None] = {}
        self._counts: Counter[tuple[str, Subject]] = Counter()
        self._running = False
        self._wake = threading.Event()
        self._next = 0.0

    def __len__(self) -> int:
        return len(self._held)

    def take(self, place: Place) -> Decision | None:
        """Take a place for a connection, and hold it from now on.

        :returns: ``None`` if it is taken, else the refusal.
        :raises RedisUnavailable: if it cannot be told and the place's ``on_outage`` is ``deny``.
        """
        sent = time.monotonic()
        share = None
        try:
            answer = self._limiter().acquire(place.subject, place.limit, place.seconds, place.scope)
        except RedisUnavailable:
            if place.on_outage == "deny":
                raise
            if place.on_outage == "local":
                share = max(1, place.limit // self._processes)
        else:
            if isinstance(answer, Decision):
                return answer
            place.lease = answer
        place.grant(place.lease, sent)
        if self._hold(place, share):
            return None
        rate = Rate(place.limit, place.seconds, name="concurrency")
        return Decision.of([RateState(rate, False, 0, place.seconds, place.seconds)])

    def free(self, place: Place) -> None:
        """Give a place back. One that cannot be given back now is free when its lease expires."""
        if not self._let_go(place) or place.lease is None:
            return
        try:
            self._limiter().release(place.lease)
        except RedisUnavailable as error:
            logger.warning("A place of a concurrency limit is free when its lease ends: %s", error)

    def _hold(self, place: Place, share: int | None) -> bool:
        with self._lock:
            if self._pid != os.getpid():  # what a parent holds is renewed by the parent
                self._pid, self._running, self._wake = os.getpid(), False, threading.Event()
                self._held, self._counts = {}, Counter()
            if share is not None and self._counts[place.identity] >= share:
                return False
            self._held[place] = None
            self._counts[place.identity] += 1
            start, self._running = not self._running, True
            if not start and place.due < self._next:
                self._wake.set()
        if start:
            try:
                threading.Thread(target=self._run, name="redis-guard-places", daemon=True).start()
            except RuntimeError as error:  # out of threads or memory: nothing would renew it
                self._running = False
                self.free(place)
                raise RedisUnavailable("CONCURRENCY RENEW", "limit-failed") from error
        return True

    def _let_go(self, place: Place) -> bool:
        with self._lock:
            if place not in self._held or self._pid != os.getpid():
                return False
            del self._held[place]
            self._counts[place.identity] -= 1
            if not self._counts[place.identity]:
                del self._counts[place.identity]
            if not self._held:
                self._wake.set()
        return True

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._held:
                    self._running = False
                    return
                self._wake.clear()
                self._next = min(place.due for place in self._held)
            self._wake.wait(max(0.0, self._next - time.monotonic()))
            now = time.monotonic()
            for place in [place for place in list(self._held) if place.due <= now]:
                try:
                    self._renew(place)
                except Exception as error:
                    logger.exception("A place of a concurrency limit could not be renewed")
                    self._lose(place, error)

    def _renew(self, place: Place) -> None:
        if not place.alive():
            self.free(place)
            return
        sent = time.monotonic()
        try:
            if place.lease is None or not self._limiter().renew(place.lease):
                # The outage was longer than the lease, or Redis lost it: it takes a place anew.
                answer = self._limiter().acquire(
                    place.subject, place.limit, place.seconds, place.scope
                )
                if isinstance(answer, Decision):
                    place.lease = None
                    self._lose(place, RateLimitExceeded(answer))
                    return
                place.lease = answer
        except RedisUnavailable as error:
            place.due = time.monotonic() + place.seconds / RENEWALS
            if place.on_outage == "deny" and place.due >= place.until:
                self._lose(place, error)
            return
        place.grant(place.lease, sent)
        if place not in self._held:  # freed meanwhile, perhaps before it was taken anew
            with suppress(RedisUnavailable):
                self._limiter().release(place.lease)

    def _lose(self, place: Place, error: Exception) -> None:
        if not isinstance(error, Refusal):
            error = RedisUnavailable("concurrency limit", "limit-failed")
        self._let_go(place)
        place.lost = error
        if place.on_lost is not None:
            place.on_lost(error)
