"""Alerts: one message for each kind of trouble and outage of a host, delivered in the background.

What carries a message to people is any callable. It runs in threads of its own, so however slow or
broken it is, no request waits for it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from uuid import uuid4

from flask_redis_guard.core.breaker import CircuitState, Transition
from flask_redis_guard.core.process import ProcessLock
from flask_redis_guard.events import (
    Bus,
    DowntimeExtended,
    FailureRateHigh,
    RedisFailed,
    RedisRecovered,
    Tick,
)
from flask_redis_guard.host.membership import Membership
from flask_redis_guard.host.telling import HostIncident, Telling
from flask_redis_guard.web.alerts.delivery import Alert, Deliver, DeliveryQueue

__all__ = ["Alert", "Alerts"]

logger = logging.getLogger("flask_redis_guard")

CONNECTION_FAILED = "connection-failed"
BREAKER_OPEN = "breaker-open"
FAILURE_RATE_HIGH = "failure-rate-high"
DOWNTIME_EXTENDED = "downtime-extended"
RECOVERED = "recovered"

#: Messages of one kind within one cool-down, however often Redis comes and goes.
BURST = 3

#: For each kind: severity, title, and what is refused and what to do.
_WORDS: Mapping[str, tuple[str, str, str]] = {
    CONNECTION_FAILED: (
        "warning",
        "Redis connection failed",
        "A call to Redis failed ({reason}). Requests that needed it were answered with 503. If "
        "failures go on, the circuit opens. Look at the Redis server and at the network.",
    ),
    BREAKER_OPEN: (
        "critical",
        "Redis is down, the circuit is open",
        "After {failure_count} failures no call goes to Redis. Requests that need it (rate limits, "
        "sessions, what uses the client) are answered with 503; all others are served. Restore "
        "Redis: it is checked in the background, and the application recovers by itself.",
    ),
    FAILURE_RATE_HIGH: (
        "error",
        "Many Redis failures",
        "{failures} calls to Redis failed within {window_seconds} s. Requests that needed them "
        "were answered with 503. Look for a Redis server that is overloaded, short of memory, or "
        "failing over.",
    ),
    DOWNTIME_EXTENDED: (
        "critical",
        "Redis is still down",
        "Redis has been down for {downtime} s. Requests that need it are answered with 503. "
        "Somebody has to restore it; the application then recovers by itself, without a restart.",
    ),
    RECOVERED: (
        "info",
        "Redis is back",
        "Redis serves again after {downtime} s. Nothing is refused any more, nothing needs doing.",
    ),
}


class Alerts:
    """Turn events of one app into messages, and hand these to a deliverer.

    :param app: the app's name.
    :param bus: tells what happens.
    :param deliver: takes an :class:`Alert`. Raising, or returning ``False``, means that it was not
        delivered; it is tried again until it is.
    :param cooldown: seconds for which a kind that was told is not told again, unless Redis has
        recovered in between; and within which no kind is told more than :data:`BURST` times.
    :param timeout: seconds after which a try counts as failed, though it may still run.
    :param host: the workers of this host, of which one tells; ``None``: this one does.
    :param clock: monotonic time in seconds.
    """

    def __init__(
        self,
        app: str,
        bus: Bus,
        deliver: Deliver,
        *,
        cooldown: float,
        timeout: float,
        host: Membership | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._telling = None if host is None else Telling(host, cooldown)
        self._adopted: set[tuple[int, str]] = set()
        self._host_incident: HostIncident | None = None
        self._app = app
        self._cooldown = cooldown
        self._clock = clock
        self._queue = DeliveryQueue(deliver, timeout, self._telling)
        self._lock = ProcessLock()
        self._open = False
        self._incident: str | None = None
        self._last_seen: dict[str, float] = {}
        self._sent: dict[str, deque[float]] = {kind: deque(maxlen=BURST) for kind in _WORDS}
        self._held: dict[str, tuple[float, Alert]] = {}
        self._muted = False
        bus.subscribe(RedisFailed, self._failed)
        bus.subscribe(Transition, self._changed)
        bus.subscribe(FailureRateHigh, self._rate_high)
        bus.subscribe(DowntimeExtended, self._extended)
        bus.subscribe(RedisRecovered, self._recovered)
        if self._telling is not None:
            bus.subscribe(Tick, self._take_over)

    @contextlib.contextmanager
    def muted(self) -> Iterator[None]:
        """Send nothing about an outage that a test has made."""
        self._muted = True
        try:
            yield
        finally:
            self._muted = False

    # -- what happens -----------------------------------------------------------------------------

    def _failed(self, event: RedisFailed) -> None:
        self._release()
        error = event.error
        self._raise(CONNECTION_FAILED, reason=error.reason, operation=error.operation)

    def _changed(self, transition: Transition) -> None:
        current = transition.current
        self._open = current not in (CircuitState.CLOSED, CircuitState.DISABLED)
        self._release()
        if current is CircuitState.OPEN:
            self._raise(
                BREAKER_OPEN,
                reason=transition.reason,
                failure_count=transition.failures,
                retry_after=math.ceil(transition.open_for),
            )

    def _rate_high(self, event: FailureRateHigh) -> None:
        self._raise(FAILURE_RATE_HIGH, failures=event.failures, window_seconds=event.window_seconds)

    def _extended(self, event: DowntimeExtended) -> None:
        self._raise(DOWNTIME_EXTENDED, downtime=round(event.downtime))

    def _recovered(self, event: RedisRecovered) -> None:
        if self._muted:
            return
        with self._lock:
            told = set(self._last_seen) - set(self._held)
            alert = self._compose(RECOVERED, {"downtime": round(event.downtime)})
            incident = self._host_incident
            self._held.clear()
            self._last_seen.clear()
            self._incident = self._host_incident = None
        if told:  # nobody needs to hear the end of what nobody heard of
            self._queue.put(alert, incident)
        if self._telling is not None:
            self._telling.end()

    def _take_over(self, _: Tick) -> None:
        """Tell what a worker noticed that has ended since."""
        if self._telling is None:
            return
        for orphan in self._telling.orphans():
            key = orphan.incident.began, orphan.kind
            if key in self._adopted or orphan.kind not in _WORDS:
                continue
            self._adopted.add(key)
            with contextlib.suppress(KeyError, ValueError):  # details of another version
                alert = self._write(orphan.kind, orphan.details, orphan.at)
                self._queue.put(alert, orphan.incident)

    # -- once, and not too often -------------------------------------------------------------------

    def _raise(self, kind: str, **details: Any) -> None:
        """Queue a message unless this outage has had it; hold it back where there were many."""
        if self._muted:
            return
        now = self._clock()
        with self._lock:
            seen = self._last_seen.get(kind)
            quiet = all(now - at >= self._cooldown for at in self._last_seen.values())
            if quiet and not self._open:  # what came before, if anything did, is another incident
                self._incident = self._host_incident = None
            self._last_seen[kind] = now
            if seen is not None and (self._open or now - seen < self._cooldown):
                return
            alert = self._compose(kind, details)
            sent = self._sent[kind]
            if len(sent) == BURST and now - sent[0] < self._cooldown:
                self._held[kind] = (sent[0] + self._cooldown, alert)
                return
            sent.append(now)
            incident = self._host_incident
        self._queue.put(alert, incident)

    def _release(self) -> None:
        """Queue what was held back for long enough, and is still true."""
        if not self._held:
            return
        now = self._clock()
        with self._lock:
            due = [kind for kind, (at, _) in self._held.items() if at <= now]
            alerts = [self._held.pop(kind)[1] for kind in due]
            for kind in due:
                self._sent[kind].append(now)
            incident = self._host_incident
        for alert in alerts:
            self._queue.put(alert, incident)

    def _compose(self, kind: str, details: dict[str, Any]) -> Alert:
        if self._incident is None:
            self._incident = uuid4().hex
        if self._telling is not None:
            self._host_incident = self._telling.incident()
        return self._write(kind, details, time.time())

    def _write(self, kind: str, details: dict[str, Any], at: float) -> Alert:
        severity, title, text = _WORDS[kind]
        return Alert(
            kind,
            severity,
            title,
            text.format(**details),
            self._app,
            socket.gethostname(),
            os.getpid(),
            at,
            details,
            self._incident or "",
        )
