"""Metrics for Prometheus; needs the extra ``prometheus``.

They live in ``prometheus_client``'s default registry, beside the application's own, so that
whatever exposes that registry exposes them, also in its multiprocess mode. No label names a client,
a key or an endpoint's argument.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from flask import Flask
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)
from prometheus_client.core import GaugeMetricFamily

from flask_redis_guard.client.gate import Gate
from flask_redis_guard.core.breaker import CircuitState, Transition
from flask_redis_guard.core.rates import Decision
from flask_redis_guard.errors import RedisUnavailable
from flask_redis_guard.events import (
    CallFinished,
    CallRefused,
    LimitsDecided,
    RequestRefused,
    SessionFailed,
)
from flask_redis_guard.host.operators import WorkerReport

#: Distinct rates that get a label of their own; rates that are computed could be without number.
MOST_RATES = 100
OTHER = "other"

#: Seconds. A local server answers within a millisecond, the default deadline is half a second.
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

CALLS = Counter(
    "redis_guard_calls",
    "Operations on Redis by how they ended; the reason says why one failed.",
    ["app", "outcome", "reason"],
)
SECONDS = Histogram(
    "redis_guard_call_seconds",
    "How long operations took that the breaker let pass.",
    ["app"],
    buckets=BUCKETS,
)
REFUSALS = Counter(
    "redis_guard_refusals",
    "Requests answered with 503 because Redis could not be asked.",
    ["app", "reason"],
)
STATE = Gauge(
    "redis_guard_circuit_state",
    "How many processes have their circuit in this state.",
    ["app", "state"],
    multiprocess_mode="livesum",
)
TRANSITIONS = Counter(
    "redis_guard_transitions",
    "Changes of the circuit's state.",
    ["app", "previous", "current"],
)
DECISIONS = Counter(
    "redis_guard_rate_limit_decisions",
    "Decisions on rate limits, by the rate that decided.",
    ["app", "rate", "decision"],
)
DENIAL_CACHE_HITS = Counter(
    "redis_guard_denial_cache_hits",
    "Refusals answered from memory, without asking Redis.",
    ["app"],
)
SESSION_FAILURES = Counter(
    "redis_guard_session_failures",
    "Reads and writes of sessions that Redis could not serve.",
    ["app", "operation"],
)


#: Told by whichever process is asked, so it is no metric of a process.
HOST_WORKERS = "redis_guard_host_workers"


class HostCollector:
    """Count the workers of this host by the states of their circuits, when it is asked.

    :param app: the app's name.
    :param workers: gives them.
    """

    def __init__(self, app: str, workers: Callable[[], Sequence[WorkerReport]]) -> None:
        self._app = app
        self._workers = workers

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Give the one metric."""
        about = "How many worker processes of this host have their circuit in this state."
        family = GaugeMetricFamily(HOST_WORKERS, about, labels=["app", "state"])
        states = [report.state for report in self._workers()]
        for state in CircuitState:
            family.add_metric([self._app, state.value], states.count(state.value))
        yield family


class Metrics:
    """Count what happens in one app.

    :param app: the app.
    :param gate: the gate of its client.
    :param workers: gives the workers of this host; ``None`` where they share nothing.
    """

    def __init__(
        self,
        app: Flask,
        gate: Gate,
        workers: Callable[[], Sequence[WorkerReport]] | None = None,
    ) -> None:
        self._host = CollectorRegistry()
        if workers is not None:
            self._host.register(HostCollector(app.name, workers))
        self._app = app.name
        self._breaker = gate.breaker
        self._rates: set[str] = set()
        self._pid: int | None = None
        self._state: CircuitState | None = None
        bus = gate.bus
        bus.subscribe(CallFinished, self._finished)
        bus.subscribe(CallRefused, self._refused_by_breaker)
        bus.subscribe(Transition, self._changed)
        bus.subscribe(RequestRefused, self._request_refused)
        bus.subscribe(LimitsDecided, self._decided)
        bus.subscribe(SessionFailed, self._session_failed)

    def scrape(self) -> tuple[bytes, str]:
        """Return the whole registry in Prometheus's text format, and its media type.

        In multiprocess mode (``PROMETHEUS_MULTIPROC_DIR``) that is the sum over all processes.
        """
        self._show_state()
        registry: CollectorRegistry = REGISTRY
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry) + generate_latest(self._host), CONTENT_TYPE_LATEST

    def _finished(self, call: CallFinished) -> None:
        if self._pid != os.getpid():
            self._show_state()
        reason = call.error.reason if isinstance(call.error, RedisUnavailable) else ""
        CALLS.labels(self._app, call.outcome.value, reason).inc()
        SECONDS.labels(self._app).observe(call.seconds)

    def _refused_by_breaker(self, _: CallRefused) -> None:
        CALLS.labels(self._app, "refused", "circuit-open").inc()

    def _changed(self, transition: Transition) -> None:
        TRANSITIONS.labels(self._app, transition.previous.value, transition.current.value).inc()
        self._show_state()

    def _request_refused(self, event: RequestRefused) -> None:
        REFUSALS.labels(self._app, event.error.reason).inc()

    def _session_failed(self, event: SessionFailed) -> None:
        SESSION_FAILURES.labels(self._app, event.operation).inc()

    def _show_state(self) -> None:
        """Set this process's state; a forked process has none yet."""
        self._pid = os.getpid()
        current = self._breaker.state
        for state in CircuitState:
            STATE.labels(self._app, state.value).set(state is current)

    def _decided(self, event: LimitsDecided) -> None:
        asked = list(zip(event.decisions, event.shadow, strict=True))
        refused = any(not decision.allowed and not shadow for decision, shadow in asked)
        if refused and any(decision.remembered for decision in event.decisions):
            DENIAL_CACHE_HITS.labels(self._app).inc()
        for decision, shadow in asked:
            if decision.allowed and refused:
                continue  # it had room, but nothing was charged to it
            verdict = "allowed" if decision.allowed else "shadow" if shadow else "denied"
            DECISIONS.labels(self._app, self._rate(decision), verdict).inc()

    def _rate(self, decision: Decision) -> str:
        name = decision.rate.name or str(decision.rate)
        if name not in self._rates:
            if len(self._rates) >= MOST_RATES:
                return OTHER
            self._rates.add(name)
        return name
