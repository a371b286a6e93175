"""The story of an outage: what is logged and signalled, and once each."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from flask_redis_guard.core.breaker import (
    ANOTHER_WORKER,
    TOGETHER,
    CircuitState,
    Outcome,
    Transition,
)
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

#: What the background check is called.
PROBE = "PROBE"

#: Seconds before a line on a circuit that opens again and again is written a second time. The
#: pause doubles each time, up to the longest.
FIRST_PAUSE, LONGEST_PAUSE = 60.0, 3600.0


class Chorus(Protocol):
    """The workers of this host, of which one tells the world what all of them see."""

    @property
    def failing_since(self) -> float:
        """When the first worker met the outage, on the monotonic clock; 0 if none has."""

    @property
    def patience(self) -> float:
        """Seconds that this worker leaves to others, who come before it, to tell."""

    def tells(self, what: str, since: float) -> bool:
        """Whether this worker is to tell, because no other one has.

        :param what: ``recovered`` or ``extended``.
        :param since: the outage's beginning, on the monotonic clock.
        """


class OutageWatch:
    """Follow failures and transitions of one breaker.

    An outage begins with the first failure after a success, and ends when the breaker closes or,
    if it never opened, with the next success.

    :param bus: tells of failures and transitions, and is told what they come to.
    :param alert_count: failures within the window that emit :class:`FailureRateHigh`.
    :param window_seconds: that window, in seconds.
    :param downtime_seconds: age of an outage that emits :class:`DowntimeExtended`.
    :param failing: whether failures go on although a call came back, as on a cluster of which one
        primary is away.
    :param host: the other workers of this host; ``None`` for a process that is for itself.
    :param clock: monotonic time in seconds.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        alert_count: int,
        window_seconds: float,
        downtime_seconds: float,
        failing: Callable[[], bool] = lambda: False,
        host: Chorus | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._bus = bus
        self._window_seconds = window_seconds
        self._downtime_seconds = downtime_seconds
        self._still_failing = failing
        self._clock = clock
        self._lock = ProcessLock()
        self._recent: deque[float] = deque(maxlen=alert_count)
        self._began: float | None = None
        self._opened = False
        self._reset = False  # an operator let everybody pass; no success has been seen yet
        self._told: set[str] = set()
        self._quiet_until = 0.0
        self._logged = False  # the first failure of this outage
        self._reopenings = _Pauses()
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
                self._logged = True
            # What the prober meets while the breaker is open says nothing new.
            if not (self._opened and error.operation == PROBE):
                self._recent.append(now)
            full = len(self._recent) == self._recent.maxlen
            burst = full and now - self._recent[0] <= self._window_seconds
            alert = burst and self._first("rate")
        if log:
            detail = {"operation": error.operation, "reason": error.reason}
            logger.error("Redis connection failed (%s in %s)", *_said(error), extra=detail)
        if not alert:
            return None
        return FailureRateHigh(self._recent.maxlen or 0, self._window_seconds)

    def _finished(self, call: CallFinished) -> RedisRecovered | None:
        """A success ends an outage unless the breaker is still to close."""
        if call.outcome is not Outcome.SUCCESS:
            return None
        recovered: float | None = None
        began = self._began
        with self._lock:
            if self._reset:
                recovered = self._recover()
            elif not self._opened and not self._still_failing():
                downtime, told = self.downtime, self._logged
                self._end()
                if told:
                    logger.warning("Redis answers again after %.1f s", downtime)
        return None if recovered is None else self._recovered(recovered, began)

    def _changed(self, transition: Transition) -> RedisRecovered | None:
        recovered: float | None = None
        began = self._began
        with self._lock:  # before any receiver, which may be killed
            if transition.current is CircuitState.OPEN:
                if began is None and transition.reason in (ANOTHER_WORKER, TOGETHER):
                    self._begin(self._host_began())
                self._opened, self._reset = True, False
                self._bus.subscribe(CallRefused, self._tick)
            elif transition.current in (CircuitState.CLOSED, CircuitState.DISABLED):
                if transition.reason != "operator":
                    recovered = self._recover()
                elif self._opened:  # an operator's word is no proof: the next success is
                    self._opened, self._reset = False, True
        self._log(transition, recovered)
        if recovered is None:
            return None
        if transition.reason == ANOTHER_WORKER:
            return RedisRecovered(recovered, told_elsewhere=True)
        return self._recovered(recovered, began)

    def _recovered(self, downtime: float, began: float | None) -> RedisRecovered:
        host = self._host
        first = host is None or host.tells("recovered", began or self._clock())
        return RedisRecovered(downtime, told_elsewhere=not first)

    def _host_began(self) -> float:
        """Return when the outage began that another worker has met."""
        return (0.0 if self._host is None else self._host.failing_since) or self._clock()

    def _log(self, transition: Transition, downtime: float | None) -> None:
        """Write the line that operators search for, with all that is known in it."""
        previous, current, reason = transition.previous, transition.current, transition.reason
        details: dict[str, Any] = {"reason": reason, "failures": transition.failures}
        if reason == ANOTHER_WORKER:
            self._log_other(current, downtime, details)
        elif reason == "operator":
            logger.warning("Circuit breaker set to %s by an operator", current.value, extra=details)
        elif current is CircuitState.OPEN and previous is CircuitState.HALF_OPEN:
            self._log_reopening(details)
        elif current is CircuitState.OPEN:
            logger.error(
                "Circuit breaker opening after %d failures (%s; the last: %s in %s): what needs "
                "Redis is refused with 503 until Redis answers again",
                *(transition.failures, reason, *_said(self.last_failure)),
                extra=details,
            )
        elif current is CircuitState.HALF_OPEN:
            logger.info("Circuit breaker half-open, probing Redis", extra=details)
        else:
            logger.warning(
                "Circuit breaker closing after successful operations: Redis serves again after "
                "%.1f s",
                downtime or 0.0,
                extra=details,
            )

    @staticmethod
    def _log_other(state: CircuitState, downtime: float | None, details: dict[str, Any]) -> None:
        if state is CircuitState.OPEN:
            logger.warning(
                "Another worker of this host found Redis away: circuit breaker opening, what "
                "needs Redis is refused with 503 until Redis answers again",
                extra=details,
            )
        else:
            logger.warning(
                "Another worker of this host is served again: circuit breaker closing after %.1f s",
                downtime or 0.0,
                extra=details,
            )

    def _log_reopening(self, details: dict[str, Any]) -> None:
        since = self._reopenings.tell(self._clock())
        if since is not None:
            logger.warning(
                "Circuit breaker reopening after failure in half-open state (%s in %s), down for "
                "%.1f s%s",
                *(*_said(self.last_failure), self.downtime),
                "" if since == 1 else f", {since} times since this was last written",
                extra=details,
            )

    def _tick(self, event: Tick | CallRefused) -> DowntimeExtended | None:
        """Look at the clock: an outage that lasts is told of without any traffic.

        Where the background check looks, refused calls need not.
        """
        if isinstance(event, Tick):
            self._bus.unsubscribe(CallRefused, self._tick)
        if self._began is None or not self._opened:
            return None
        host, began = self._host, self._began
        patience = 0.0 if host is None else host.patience
        with self._lock:
            long = self.downtime >= self._downtime_seconds + patience
            due = long and self._first("downtime")
        if not due:
            return None
        self._bus.unsubscribe(CallRefused, self._tick)
        first = host is None or host.tells("extended", began)
        if first:
            logger.error("Redis has been down for more than %d seconds", self._downtime_seconds)
        return DowntimeExtended(self.downtime, told_elsewhere=not first)

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
        self._logged = False
        self._bus.unsubscribe(CallFinished, self._finished)

    def _recover(self) -> float:
        downtime = self.downtime
        self._end()
        self._bus.unsubscribe(CallRefused, self._tick)
        self._opened, self._reset = False, False
        self._told.clear()
        self._recent.clear()
        self._quiet_until = 0.0
        self._reopenings = _Pauses()
        return downtime


class _Pauses:
    """Tell something at once, and then after pauses that grow."""

    def __init__(self) -> None:
        self._pause = FIRST_PAUSE
        self._not_before = 0.0
        self._since = 0

    def tell(self, now: float) -> int | None:
        """Return how often it happened since it was told, or ``None`` if it is not told now."""
        self._since += 1
        if now < self._not_before:
            return None
        since, self._since = self._since, 0
        self._not_before = now + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return since


def _said(error: RedisUnavailable | None) -> tuple[str, str]:
    """Return the reason and the operation of a failure."""
    return ("unknown", "unknown") if error is None else (error.reason, error.operation)
