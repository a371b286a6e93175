"""Alerts: one message for each kind of trouble, outage and process, delivered in the background.

What carries a message to people is any callable. It runs in threads of its own, so however slow or
broken it is, no request waits for it.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flask import Flask

from flask_redis_guard import signals
from flask_redis_guard.core.breaker import CircuitState
from flask_redis_guard.core.locks import ProcessLock

logger = logging.getLogger("flask_redis_guard")

CONNECTION_FAILED = "connection-failed"
BREAKER_OPEN = "breaker-open"
FAILURE_RATE_HIGH = "failure-rate-high"
DOWNTIME_EXTENDED = "downtime-extended"
RECOVERED = "recovered"

#: Messages kept for a deliverer that does not work; beyond it the oldest go.
MOST_WAITING = 100
#: Messages of one kind within one cool-down, however often Redis comes and goes.
BURST = 3
#: Seconds before the second try of a delivery, and the most between two tries.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
#: Tries that hang and are waited for no more; while there are so many no other one is made.
MOST_HANGING = 4

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
        "Redis: this process probes it again in {retry_after} s and recovers by itself.",
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


@dataclass(frozen=True)
class Alert:
    """One message. It carries no key, no value, no URL and no password."""

    #: ``connection-failed``, ``breaker-open``, ``failure-rate-high``, ``downtime-extended`` or
    #: ``recovered``.
    kind: str
    #: ``info``, ``warning``, ``error`` or ``critical``.
    severity: str
    #: One line.
    title: str
    #: What happened, what is refused, what to do.
    text: str
    #: The name of the Flask app.
    app: str
    #: The machine and the process that noticed; each process sends its own.
    host: str
    process: int
    #: When it happened, in seconds since the epoch.
    at: float
    #: The numbers behind the text.
    details: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        where = f"{self.app}, process {self.process} on {self.host}"
        return f"[{self.severity}] {self.title} ({where}): {self.text}"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as what JSON can say."""
        return {**vars(self), "details": dict(self.details)}


Deliver = Callable[[Alert], object]


class Alerts:
    """Turn signals of one app into messages, and hand these to a deliverer.

    :param app: the app.
    :param deliver: takes an :class:`Alert`. Raising, or returning ``False``, means that it was not
        delivered; it is tried again until it is.
    :param cooldown: seconds for which a kind that was told is not told again, unless Redis has
        recovered in between; and within which no kind is told more than :data:`BURST` times.
    :param timeout: seconds after which a try counts as failed, though it may still run.
    :param clock: monotonic time in seconds.
    """

    def __init__(
        self,
        app: Flask,
        deliver: Deliver,
        *,
        cooldown: float,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._cooldown = cooldown
        self._clock = clock
        self._queue = DeliveryQueue(deliver, timeout)
        self._lock = ProcessLock()
        self._open = False
        self._last_seen: dict[str, float] = {}
        self._sent: dict[str, deque[float]] = {kind: deque(maxlen=BURST) for kind in _WORDS}
        self._held: dict[str, tuple[float, Alert]] = {}
        # Held here, for blinker keeps weak references only.
        self._receivers: dict[Any, Callable[..., None]] = {
            signals.redis_failure: self._failed,
            signals.circuit_state_changed: self._changed,
            signals.failure_rate_high: self._rate_high,
            signals.downtime_extended: self._extended,
            signals.redis_recovered: self._recovered,
        }
        for signal, receiver in self._receivers.items():
            signal.connect(receiver, app)

    # -- what the signals say ----------------------------------------------------------------------

    def _failed(self, _: Flask, *, error: Any, failure_count: int) -> None:
        self._release()
        self._raise(CONNECTION_FAILED, reason=error.reason, operation=error.operation)

    def _changed(
        self, _: Flask, *, current: CircuitState, previous: CircuitState, **event: Any
    ) -> None:
        self._open = current not in (CircuitState.CLOSED, CircuitState.DISABLED)
        self._release()
        if current is CircuitState.OPEN:
            self._raise(
                BREAKER_OPEN,
                reason=event["reason"],
                failure_count=event["failure_count"],
                retry_after=math.ceil(event["retry_after"]),
            )

    def _rate_high(self, _: Flask, *, failures: int, window_seconds: float) -> None:
        self._raise(FAILURE_RATE_HIGH, failures=failures, window_seconds=window_seconds)

    def _extended(self, _: Flask, *, downtime: float) -> None:
        self._raise(DOWNTIME_EXTENDED, downtime=round(downtime))

    def _recovered(self, _: Flask, *, downtime: float) -> None:
        with self._lock:
            told = set(self._last_seen) - set(self._held)
            self._held.clear()
            self._last_seen.clear()
        if told:  # nobody needs to hear the end of what nobody heard of
            self._queue.put(self._compose(RECOVERED, {"downtime": round(downtime)}))

    # -- once, and not too often -------------------------------------------------------------------

    def _raise(self, kind: str, **details: Any) -> None:
        """Queue a message unless this outage has had it; hold it back where there were many."""
        now = self._clock()
        with self._lock:
            seen = self._last_seen.get(kind)
            self._last_seen[kind] = now
            if seen is not None and (self._open or now - seen < self._cooldown):
                return
            alert = self._compose(kind, details)
            sent = self._sent[kind]
            if len(sent) == BURST and now - sent[0] < self._cooldown:
                self._held[kind] = (sent[0] + self._cooldown, alert)
                return
            sent.append(now)
        self._queue.put(alert)

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
        for alert in alerts:
            self._queue.put(alert)

    def _compose(self, kind: str, details: dict[str, Any]) -> Alert:
        severity, title, text = _WORDS[kind]
        return Alert(
            kind,
            severity,
            title,
            text.format(**details),
            self._app.name,
            socket.gethostname(),
            os.getpid(),
            time.time(),
            details,
        )


class DeliveryQueue:
    """Deliver one message after the other, each until it is delivered.

    :param deliver: see :class:`Alerts`.
    :param timeout: seconds to wait for one try.
    """

    def __init__(self, deliver: Deliver, timeout: float) -> None:
        self._deliver = deliver
        self._timeout = timeout
        self._waiting: deque[Alert] = deque()
        self._lock = ProcessLock()
        self._pid: int | None = None
        self._wake = threading.Event()
        #: Tries that are waited for no more and have not ended.
        self.hanging = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, alert: Alert) -> None:
        """Queue a message; returns at once."""
        with self._lock:
            first = self._pid != os.getpid()  # in this process: threads do not survive a fork
            if first:
                self._pid = os.getpid()
                self._wake = threading.Event()
                self._waiting.clear()  # what the parent has queued is the parent's to deliver
                self.hanging = 0
            lost = self._waiting.popleft() if len(self._waiting) >= MOST_WAITING else None
            self._waiting.append(alert)
            self._wake.set()
        if lost is not None:
            logger.error("Too many undelivered alerts: %s of %d is lost", lost.kind, lost.at)
        if first:
            threading.Thread(target=self._run, name="redis-guard-alerts", daemon=True).start()

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            self._wake.clear()
            if not self._waiting:
                self._wake.wait()
                continue
            alert = self._waiting[0]
            if self.hanging < MOST_HANGING and self._try(alert):
                pause = FIRST_PAUSE
                with self._lock:
                    if self._waiting and self._waiting[0] is alert:
                        self._waiting.popleft()
                continue
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _try(self, alert: Alert) -> bool:
        """Try once, in a thread that is waited for no longer than the patience allows."""
        done = threading.Event()
        failures: list[str | None] = []
        abandoned = False

        def attempt() -> None:
            failure: str | None = "it was interrupted"
            try:
                failure = "it returned False" if self._deliver(alert) is False else None
            except Exception as exc:  # noqa: BLE001 - whatever a user's function may raise
                # Not the exception's text: a webhook's URL in it is a secret.
                failure = type(exc).__name__
            finally:
                with self._lock:
                    failures.append(failure)
                    if abandoned:
                        self._outlasted(alert, delivered=failure is None)
                done.set()

        threading.Thread(target=attempt, name="redis-guard-alert", daemon=True).start()
        done.wait(self._timeout)
        with self._lock:
            if not failures:
                abandoned = True
                self.hanging += 1
        failure = failures[0] if not abandoned else f"not done in {self._timeout:g} s"
        if failure is not None:
            logger.error("Delivering the alert %s failed: %s", alert.kind, failure)
        return failure is None

    def _outlasted(self, alert: Alert, *, delivered: bool) -> None:
        """A try that was waited for no more has ended."""
        self.hanging -= 1
        if delivered and self._waiting and self._waiting[0] is alert:
            self._waiting.popleft()  # late, but it need not be tried again
