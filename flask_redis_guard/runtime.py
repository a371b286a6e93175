"""What one app has at run time, put together from the parts below; features above ask it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Generic, NoReturn, TypeVar

import redis
from flask import Blueprint, Flask, current_app, has_app_context

from flask_redis_guard import signals
from flask_redis_guard.client.gate import Gate
from flask_redis_guard.client.topology.factory import breaker_class, build_client
from flask_redis_guard.config import Settings
from flask_redis_guard.core.breaker import CircuitState, Transition
from flask_redis_guard.core.process import ProcessLock
from flask_redis_guard.errors import GuardError
from flask_redis_guard.events import Bus
from flask_redis_guard.host.membership import Membership
from flask_redis_guard.host.operators import Operators, WorkerReport
from flask_redis_guard.host.places import BoardName
from flask_redis_guard.limiting.limiter import RateLimiter
from flask_redis_guard.limiting.slots import ConcurrencyLimiter, PlaceKeeper
from flask_redis_guard.observe.diagnosis import Finding, diagnose
from flask_redis_guard.observe.outage import OutageWatch
from flask_redis_guard.observe.probe import Monitor
from flask_redis_guard.observe.report import HealthReport
from flask_redis_guard.sessions.store import SessionStore

#: Where an app's runtime lies in ``app.extensions``.
EXTENSION = "redis_guard"

T = TypeVar("T")


class Runtime:
    """All that the extension keeps for one app; nothing is shared between apps.

    :param app: the app.
    :param settings: its checked settings.
    """

    def __init__(self, app: Flask, settings: Settings) -> None:
        self.app = app
        self.settings = settings
        #: What was warned of already, once for each app.
        self.warned: set[str] = set()
        #: The blueprint of the health routes, if there is one.
        self.health: Blueprint | None = None
        self._parts: dict[type[Any], Any] = {}
        self._making = ProcessLock()
        self._limiter: RateLimiter | None = None
        #: Tells what happens in this app.
        self.bus = bus = Bus()
        self.breaker = breaker_class(settings.redis_url)(
            failure_threshold=settings.failure_threshold,
            failure_rate=settings.failure_rate,
            minimum_calls=settings.minimum_calls,
            window_seconds=settings.window_seconds,
            success_threshold=settings.success_threshold,
            open_seconds=settings.open_seconds,
            half_open_permits=settings.half_open_permits,
            lease_seconds=max(1.0, 4 * settings.timeout),
            on_transition=bus.emit,
        )
        self.gate = Gate(
            self.breaker,
            settings.timeout,
            in_memory=settings.development,
            memory_only=settings.redis_url.startswith("memory://"),
            bus=bus,
        )
        #: The place among the workers of this host; ``None`` where each is for itself.
        self.host = self._find_host()
        self.watch = OutageWatch(
            bus,
            alert_count=settings.failure_alert_count,
            window_seconds=settings.window_seconds,
            downtime_seconds=settings.downtime_alert_seconds,
            failing=lambda: self.breaker.failure_count > 0,
            host=self.host,
        )
        self.client: redis.Redis = build_client(settings, self.gate)
        self.monitor = Monitor(
            lambda: self.client,
            self.gate,
            settings.key_prefix + "probe",
            settings.health_check_interval,
            settings.recovery_interval,
            settings.open_seconds,
            self.host,
        )
        self.report = HealthReport(
            self.gate, self.monitor, self.watch, lambda: self.client, self.host
        )
        signals.follow(bus, app)
        # Made here and not on first use: two of them would each know half of the connections.
        self.places = PlaceKeeper(lambda: self.concurrency, processes=settings.processes)
        bus.subscribe(Transition, self._catch_up)

    def _find_host(self) -> Membership | None:
        """Return the place among the workers of this host.

        Where the in-memory store may serve, an app under test for one, processes that happen to
        have the same name and URL are no workers of one app, unless the settings say so.
        """
        settings, where = self.settings, self.settings.host_state
        alone = (settings.development or self.app.testing) and where == "auto"
        if where == "off" or alone or self.gate.memory_only:
            return None
        return Membership(
            BoardName(self.app.name, settings.redis_url, settings.key_prefix),
            where,
            self.gate,
            threshold=settings.failure_threshold,
            window=settings.window_seconds,
        )

    def look(self) -> None:
        """Have the breaker follow what other workers of this host know by now."""
        if self.host is not None:
            self.host.look()

    @cached_property
    def operators(self) -> Operators | None:
        """What an operator sees of all workers of this host; ``None`` where nothing is shared."""
        return None if self.host is None else Operators(self.host)

    def workers(self) -> list[WorkerReport]:
        """Return the workers of this app on this host; none where nothing is shared."""
        self.look()
        return [] if self.operators is None else self.operators.workers()

    def _catch_up(self, change: Transition) -> None:
        if change.current is CircuitState.CLOSED:
            self.places.recovered()

    @property
    def limiter(self) -> RateLimiter:
        """The rate limiter; made on first use, when the app's SECRET_KEY is known."""
        made = self._limiter
        if made is None:
            with self._making:  # one only: it remembers refusals, and counts during an outage
                made = self._limiter
                if made is None:
                    made = self._limiter = self._make_limiter()
        return made

    def _make_limiter(self) -> RateLimiter:
        secret = self.app.secret_key
        return RateLimiter(
            self.client,
            prefix=self.settings.key_prefix,
            secret=secret.encode() if isinstance(secret, str) else secret,
            denial_cache_size=self.settings.denial_cache_size,
            processes=self.settings.processes,
            bus=self.bus,
        )

    @cached_property
    def concurrency(self) -> ConcurrencyLimiter:
        """The concurrency limiter, with the rate limiter's keys."""
        return ConcurrencyLimiter(self.client, self.limiter.keys)

    @cached_property
    def sessions(self) -> SessionStore:
        """The session store."""
        return SessionStore(
            self.client,
            prefix=self.settings.key_prefix,
            max_bytes=self.settings.session_max_bytes,
            max_per_user=self.settings.session_max_per_user,
            bus=self.bus,
        )

    def diagnose(self) -> Iterator[Finding]:
        """Go through the steps of ``flask redis-guard check``."""

        def run_scripts() -> None:
            self.limiter.hit("1000/minute", "check", scope="redis-guard check")
            self.limiter.reset("1000/minute", "check", scope="redis-guard check")

        key = self.settings.key_prefix + "probe:check"
        url = self.settings.redis_url
        return diagnose(self.gate, lambda: self.client, key, run_scripts, url)

    def add(self, part: object) -> None:
        """Keep what a feature above needs for this app; :meth:`part` finds it by its type."""
        self._parts[type(part)] = part

    def part(self, kind: type[T]) -> T:
        """Return what a feature keeps for this app.

        :param kind: its type.
        :raises KeyError: if the feature is not installed.
        """
        return self._parts[kind]  # type: ignore[no-any-return]


def of(app: Flask) -> Runtime:
    """Return the runtime of an app.

    :raises GuardError: if ``init_app`` was not called for it.
    """
    runtime = app.extensions.get(EXTENSION)
    if not isinstance(runtime, Runtime):
        raise GuardError(f"The app {app.name!r} has no guard: call guard.init_app(app)")
    return runtime


def current() -> Runtime:
    """Return the runtime of the current app.

    :raises GuardError: without a current app, or if ``init_app`` was not called for it.
    """
    if not has_app_context():
        raise GuardError(
            "There is no current app: use the guard in a request or `with app.app_context():`, "
            "or name the app: guard.client_for(app)"
        )
    return of(current_app)


class OfCurrentApp(Generic[T]):
    """A read-only attribute that is the current app's.

    :param name: the attribute of its :class:`Runtime`.
    :param doc: says what it is.
    """

    def __init__(self, name: str, doc: str) -> None:
        self._name = name
        self.__doc__ = doc

    def __get__(self, owner: object, kind: type[Any]) -> T:
        found: Any = self if owner is None else getattr(current(), self._name)
        return found  # type: ignore[no-any-return]

    def __set__(self, owner: object, value: NoReturn) -> NoReturn:
        raise AttributeError(f"{self._name!r} is the current app's and cannot be set")
