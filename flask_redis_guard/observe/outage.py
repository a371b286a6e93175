"""The story of an outage: what is logged and signalled, and once each."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from flask_redis_guard.core.breaker import CircuitState, Outcome, Transition
from flask_redis_guard.core.process import ProcessLock
from flask_redis_guard.errors import RedisUnavailable
from flask_redis_guard.events import (
    Bus,
    CallFinished,
    CallRefused,
    DowntimeExtended,
    FailureRateHigh,
    RedisFailed,
    RedisRecovered,
    Tick,
)

logger = logging.getLogger("flask_redis_guard")


class OutageWatch:
    """Follow failures and transitions of one breaker.

    An outage begins with the first failure after a success, and ends when the breaker closes or,
    if it never opened, with the next success.

    :param bus: tells of failures and transitions, and is told what they come to.
    :param alert_count: failures within the window that emit :class:`FailureRateHigh`.
    :param window_seconds: that window, in seconds.
    :param downtime_seconds: age of an outage that emits :class:`DowntimeExtended`.
    :param clock: monotonic time in seconds.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        alert_count: int,
        window_seconds: float,
        downtime_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bus = bus
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
        bus.subscribe(RedisFailed, self._failed)
        bus.subscribe(Transition, self._changed)
        bus.subscribe(Tick, self._tick)

    @property
    def failing(self) -> bool:
        """Whether an outage is going on, as far as this process knows."""
        return self._began is not None

    @property
    def downtime(self) -> float:
        """Seconds since the outage's first failure; 0 while there is none."""
        began = self._began
        return 0.0 if began is None else self._clock() - began

    def _failed(self, failure: RedisFailed) -> FailureRateHigh | None:
        now, error = self._clock(), failure.error
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
        if not alert:
            return None
        return FailureRateHigh(self._recent.maxlen or 0, self._window_seconds)

    def _finished(self, call: CallFinished) -> RedisRecovered | None:
        """A success ends an outage unless the breaker is still to close."""
        if call.outcome is not Outcome.SUCCESS:
            return None
        recovered: float | None = None
        with self._lock:
            if self._reset:
                recovered = self._recover()
            elif not self._opened:
                self._end()
        return None if recovered is None else RedisRecovered(recovered)

    def _changed(self, transition: Transition) -> RedisRecovered | None:
        recovered: float | None = None
        with self._lock:  # before any receiver, which may be killed
            if transition.current is CircuitState.OPEN:
                self._opened, self._reset = True, False
                self._bus.subscribe(CallRefused, self._tick)
            elif transition.current in (CircuitState.CLOSED, CircuitState.DISABLED):
                if transition.reason != "operator":
                    recovered = self._recover()
                elif self._opened:  # an operator's word is no proof: the next success is
                    self._opened, self._reset = False, True
        _log(transition)
        return None if recovered is None else RedisRecovered(recovered)

    def _tick(self, _: object) -> DowntimeExtended | None:
        """Look at the clock: an outage that lasts is told of without any traffic."""
        if self._began is None or not self._opened:
            return None
        with self._lock:
            due = self.downtime >= self._downtime_seconds and self._first("downtime")
        if not due:
            return None
        self._bus.unsubscribe(CallRefused, self._tick)
        logger.error("Redis has been down for more than %d seconds", self._downtime_seconds)
        return DowntimeExtended(self.downtime)

    def _begin(self, now: float) -> None:
        self._began = now
        self._bus.subscribe(CallFinished, self._finished)
        # What flickers without ever opening the breaker is one story, told once.
        if not self._recent or now - self._recent[-1] > self._window_seconds:
            self._told.clear()
            self._recent.clear()

    def _first(self, what: str) -> bool:
        first = what not in self._told
        self._told.add(what)
        return first

    def _end(self) -> None:
        self._began = None
        self._bus.unsubscribe(CallFinished, self._finished)

    def _recover(self) -> float:
        downtime = self.downtime
        self._end()
        self._bus.unsubscribe(CallRefused, self._tick)
        self._opened, self._reset = False, False
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
