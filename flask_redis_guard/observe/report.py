"""What one process can tell about Redis: five fields for everybody, the rest for operators."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import redis

from flask_redis_guard.client.gate import Gate, Lookout
from flask_redis_guard.core.breaker import CircuitState, Transition
from flask_redis_guard.core.timeline import SLOT_SECONDS, Timeline
from flask_redis_guard.errors import RedisUnavailable
from flask_redis_guard.events import Checked, LimitExceeded, RequestRefused
from flask_redis_guard.observe.diagnosis import servers
from flask_redis_guard.observe.outage import OutageWatch
from flask_redis_guard.observe.probe import Monitor

#: Limits that are counted one by one; rates that are computed could be without number.
MOST_LIMITS = 100
OTHER = "other"


class HealthReport:
    """Answer how Redis is, from what the guard knows, with at most one check for each interval.

    :param gate: the gate of the app's client.
    :param monitor: the background check.
    :param watch: the story of the current outage.
    :param client: gives the client, for the server's version and the pool's use.
    :param host: the other workers of this host, whose knowledge the answers take in.
    """

    def __init__(
        self,
        gate: Gate,
        monitor: Monitor,
        watch: OutageWatch,
        client: Callable[[], Any],
        host: Lookout | None = None,
    ) -> None:
        self._host = host
        self._gate = gate
        self._breaker = gate.breaker
        self._monitor = monitor
        self._watch = watch
        self._client = client
        self.timeline = Timeline()
        self._limited: Counter[str] = Counter()
        self._version: str | None = None
        self._version_asked_at: float | None = None
        bus = gate.bus
        bus.subscribe(Checked, lambda check: self.timeline.checked(check.latency_ms))
        bus.subscribe(Transition, self._changed)
        bus.subscribe(RequestRefused, lambda _: self.timeline.refused())
        bus.subscribe(LimitExceeded, self._exceeded)

    def _changed(self, transition: Transition) -> None:
        self.timeline.changed(transition.current)
        if transition.current is not CircuitState.CLOSED:
            self._version = None  # what comes back may be another server

    def _exceeded(self, event: LimitExceeded) -> None:
        if event.shadow:
            return
        self.timeline.limited()
        name = event.decision.rate.name or str(event.decision.rate)
        known = name in self._limited or len(self._limited) < MOST_LIMITS
        self._limited[name if known else OTHER] += 1

    # -- what is told ----------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether requests that need Redis would get through now, as far as the breaker knows."""
        self._look()
        return self._gate.serving_memory or not self._breaker.refusing

    @staticmethod
    def status(summary: Mapping[str, Any], *, ready: bool) -> str:
        """Return ``pass``, ``warn`` (failing, but not refused yet) or ``fail``."""
        return "fail" if not ready else "pass" if summary["healthy"] else "warn"

    @property
    def retry_after(self) -> float:
        """Seconds until it makes sense to ask again; 0 while nobody is refused."""
        return self._breaker.retry_after

    def summary(self) -> dict[str, Any]:
        """Return the five fields that anybody may see."""
        self._look()
        check = self._check()
        return {
            "healthy": check is not None and check.healthy,
            "latency_ms": None if check is None else check.latency_ms,
            "circuit_state": self._breaker.state.value,
            "failure_count": self._breaker.failure_count,
            "is_mock": self._gate.serving_memory,
        }

    def details(self) -> dict[str, Any]:
        """Return what operators may see beside: no key, no URL, no text of an exception."""
        last = self._watch.last_failure
        pool = getattr(self._client(), "connection_pool", None)
        return {
            "seconds_in_state": round(self._breaker.seconds_in_state, 1),
            "retry_after": round(self._breaker.retry_after, 1),
            "downtime": round(self._watch.downtime, 1),
            "last_failure": None if last is None else _failure(last, self._watch.last_failure_at),
            "connections_in_use": getattr(pool, "in_use", None),
            "connections_at_most": getattr(pool, "max_connections", None),
            "server_version": self._server_version(),
            "primaries": {
                node: breaker.state.value for node, breaker in self._breaker.primaries.items()
            },
            "limited": dict(self._limited.most_common()),
            "host": socket.gethostname(),
        }

    def history(self) -> dict[str, Any]:
        """Return the last hour as columns, the oldest slot first."""
        slots = self.timeline.slots()
        return {
            "slot_seconds": SLOT_SECONDS,
            "state": [slot.state.value for slot in slots],
            "latency_ms": [slot.latency_ms for slot in slots],
            "failed_checks": [slot.failed_checks for slot in slots],
            "refused": [slot.refused for slot in slots],
            "limited": [slot.limited for slot in slots],
        }

    @staticmethod
    def process() -> int:
        """Return the id of the process that speaks: another one may see it otherwise."""
        return os.getpid()

    def _look(self) -> None:
        if self._host is not None:
            self._host.look()

    def _check(self) -> Checked | None:
        kept_out = (CircuitState.OPEN, CircuitState.FORCED_OPEN)
        return None if self._breaker.state in kept_out else self._monitor.latest()

    def _server_version(self) -> str | None:
        """Return the server's version, asked for once a connection was proven by a check."""
        check = self._check()
        if self._version is not None or check is None or not check.healthy:
            return self._version
        if self._version_asked_at == check.at or self._gate.serving_memory:
            return None
        self._version_asked_at = check.at
        try:
            client = self._client()
            found = self._gate.run("INFO", lambda: servers(client, "server", one=True), probe=True)
        except (redis.RedisError, RedisUnavailable):
            return None  # not permitted, or just gone: the next check will tell
        self._version = found[0].version
        return self._version


def _failure(error: RedisUnavailable, at: float) -> dict[str, Any]:
    cause = error.__cause__
    return {
        "operation": error.operation,
        "reason": error.reason,
        "error": type(error if cause is None else cause).__name__,
        "at": round(at, 3),
    }
