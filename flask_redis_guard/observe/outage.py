"""The story of an outage: what is logged and signalled, and once each."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from flask_redis_guard import signals
from flask_redis_guard.core.breaker import CircuitBreaker, CircuitState, Transition
from flask_redis_guard.core.process import ProcessLock
from flask_redis_guard.errors import RedisUnavailable

logger = logging.getLogger("flask_redis_guard")

OPENED = (CircuitState.OPEN, CircuitState.HALF_OPEN)


class OutageWatch:
    """Follow failures and transitions of one breaker.

    An outage begins with the first failure after a success, and ends when the breaker closes or,
    if it never opened, with the next success.

    :param send: sends a signal: ``send(signal, **event)``.
    :param alert_count: failures within the window that send ``failure_rate_high``.
    :param window_seconds: that window, in seconds.
    :param downtime_seconds: age of an outage that sends ``downtime_extended``.
    :param clock: monotonic time in seconds.
    """

    def __init__(
        self,
        send: Callable[..., object],
        *,
        alert_count: int,
        window_seconds: float,
        downtime_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._window_seconds = window_seconds
        self._downtime_seconds = downtime_seconds
        self._clock = clock
        self._lock = ProcessLock()
        self._recent: deque[float] = deque(maxlen=alert_count)
        self._began: float | None = None
        self._opened = False
        self._reset = False  # an operator let everybody pass; no success has been seen yet
        self._told: set[str] = set()
        self._quiet_until = 0.0
        #: The error of the last failure; ``None`` while there was none.
        self.last_failure: RedisUnavailable | None = None
        #: When that was, in seconds since the epoch.
        self.last_failure_at = 0.0

    @property
    def failing(self) -> bool:
        """Whether an outage is going on, as far as this process knows."""
        return self._began is not None

    @property
    def downtime(self) -> float:
        """Seconds since the outage's first failure; 0 while there is none."""
        began = self._began
        return 0.0 if began is None else self._clock() - began

    def failed(self, error: RedisUnavailable, breaker: CircuitBreaker) -> None:
        """Take note of a failure that was counted."""
        now = self._clock()
        with self._lock:
            self.last_failure, self.last_failure_at = error, time.time()
            log = self._began is None and now >= self._quiet_until
            if self._began is None:
                self._begin(now)
            if log:
                self._quiet_until = now + self._window_seconds
            self._recent.append(now)
            full = len(self._recent) == self._recent.maxlen
            burst = full and now - self._recent[0] <= self._window_seconds
            alert = burst and self._first("rate")
        if log:
            detail = {"operation": error.operation, "reason": error.reason}
            logger.error("Redis connection failed", extra=detail)
        self._send(signals.redis_failure, error=error, failure_count=breaker.failure_count)
        if alert:
            self._send(
                signals.failure_rate_high,
                failures=self._recent.maxlen,
                window_seconds=self._window_seconds,
            )

    def succeeded(self) -> None:
        """Take note of a success; it ends an outage unless the breaker is still to close."""
        recovered: float | None = None
        with self._lock:
            if self._reset:
                recovered = self._recover()
            elif not self._opened:
                self._began = None
        self._tell_recovered(recovered)

    def changed(self, transition: Transition) -> None:
        """Log and signal a transition of the breaker."""
        recovered: float | None = None
        with self._lock:  # before any receiver, which may be killed
            if transition.current is CircuitState.OPEN:
                self._opened, self._reset = True, False
            elif transition.current in (CircuitState.CLOSED, CircuitState.DISABLED):
                if transition.reason != "operator":
                    recovered = self._recover()
                elif self._opened:  # an operator's word is no proof: the next success is
                    self._opened, self._reset = False, True
        _log(transition)
        self._send(
            signals.circuit_state_changed,
            previous=transition.previous,
            current=transition.current,
            reason=transition.reason,
            failure_count=transition.failures,
            retry_after=transition.open_for,
        )
        self._tell_recovered(recovered)

    def _tell_recovered(self, downtime: float | None) -> None:
        if downtime is not None:
            self._send(signals.redis_recovered, downtime=downtime)

    def tick(self) -> None:
        """Look at the clock: an outage that lasts is told of without any traffic."""
        if self._began is None or not self._opened:
            return
        with self._lock:
            due = self.downtime >= self._downtime_seconds and self._first("downtime")
        if due:
            logger.error("Redis has been down for more than %d seconds", self._downtime_seconds)
            self._send(signals.downtime_extended, downtime=self.downtime)

    def _begin(self, now: float) -> None:
        self._began = now
        # What flickers without ever opening the breaker is one story, told once.
        if not self._recent or now - self._recent[-1] > self._window_seconds:
            self._told.clear()
            self._recent.clear()

    def _first(self, what: str) -> bool:
        first = what not in self._told
        self._told.add(what)
        return first

    def _recover(self) -> float:
        downtime = self.downtime
        self._began, self._opened, self._reset = None, False, False
        self._told.clear()
        self._recent.clear()
        self._quiet_until = 0.0
        return downtime


def _log(transition: Transition) -> None:
    """Write the line that operators search for."""
    previous, current = transition.previous, transition.current
    details: dict[str, Any] = {"reason": transition.reason, "failures": transition.failures}
    if transition.reason == "operator":
        logger.warning("Circuit breaker set to %s by an operator", current.value, extra=details)
    elif current is CircuitState.OPEN and previous is CircuitState.HALF_OPEN:
        logger.warning("Circuit breaker reopening after failure in half-open state", extra=details)
    elif current is CircuitState.OPEN:
        logger.error(
            "Circuit breaker opening after %d failures", transition.failures, extra=details
        )
    elif current is CircuitState.HALF_OPEN:
        logger.info("Circuit breaker half-open, probing Redis", extra=details)
    else:
        logger.info("Circuit breaker closing after successful operations", extra=details)
