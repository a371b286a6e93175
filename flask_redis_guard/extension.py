"""``RedisGuard``: the one place that knows every part and puts them together."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import redis
from flask import Blueprint, Flask, current_app, has_app_context

from flask_redis_guard import signals
from flask_redis_guard.client.factory import build_client
from flask_redis_guard.client.gate import Gate
from flask_redis_guard.client.monitor import Monitor
from flask_redis_guard.client.watch import OutageWatch
from flask_redis_guard.config import Settings
from flask_redis_guard.core.breaker import CircuitBreaker, CircuitState
from flask_redis_guard.errors import CircuitOpen, GuardError
from flask_redis_guard.limiting.concurrency import ConcurrencyLimiter
from flask_redis_guard.limiting.limiter import RateLimiter
from flask_redis_guard.limiting.places import PlaceKeeper
from flask_redis_guard.web import ratelimit, replies, websocket
from flask_redis_guard.web.health import health_blueprint
from flask_redis_guard.web.host import EXTENSION
from flask_redis_guard.web.limits import DeclaredLimits, Limit, Rates


class AppGuard:
    """All that the extension keeps for one app; nothing is shared between apps.

    :param app: the app.
    :param settings: its checked settings.
    """

    def __init__(self, app: Flask, settings: Settings, declared: DeclaredLimits) -> None:
        self.app = app
        self.settings = settings
        self.warned: set[str] = set()
        self.health: Blueprint | None = None
        self._declared = declared
        self._default_limits = [Limit(settings.default_limits)] if settings.default_limits else []
        self.watch = OutageWatch(
            self.send,
            alert_count=settings.failure_alert_count,
            window_seconds=settings.window_seconds,
            downtime_seconds=settings.downtime_alert_seconds,
        )
        self.breaker = CircuitBreaker(
            failure_threshold=settings.failure_threshold,
            failure_rate=settings.failure_rate,
            minimum_calls=settings.minimum_calls,
            window_seconds=settings.window_seconds,
            success_threshold=settings.success_threshold,
            open_seconds=settings.open_seconds,
            half_open_permits=settings.half_open_permits,
            lease_seconds=max(1.0, 4 * settings.timeout),
            on_transition=self.watch.changed,
        )
        self.gate = Gate(
            self.breaker,
            settings.timeout,
            in_memory=settings.development,
            memory_only=settings.redis_url.startswith("memory://"),
            watch=self.watch,
        )
        self.client: redis.Redis = build_client(settings, self.gate)
        self.monitor = Monitor(
            lambda: self.client,
            self.gate,
            self.watch,
            settings.key_prefix + "probe",
            settings.health_check_interval,
        )
        self.gate.on_begin = self.monitor.start

    def send(self, signal: Any, **event: Any) -> None:
        """Send a signal with the app as the sender."""
        signals.send(signal, self.app, **event)

    @cached_property
    def limiter(self) -> RateLimiter:
        """The rate limiter; made on first use, when the app's SECRET_KEY is known."""
        secret = self.app.secret_key
        return RateLimiter(
            self.client,
            prefix=self.settings.key_prefix,
            secret=secret.encode() if isinstance(secret, str) else secret,
            denial_cache_size=self.settings.denial_cache_size,
            processes=self.settings.processes,
        )

    @cached_property
    def concurrency(self) -> ConcurrencyLimiter:
        """The concurrency limiter, with the rate limiter's keys."""
        return ConcurrencyLimiter(self.client, self.limiter.keys)

    @cached_property
    def places(self) -> PlaceKeeper:
        """Holds the places of open connections."""
        return PlaceKeeper(self.concurrency, processes=self.settings.processes)

    @property
    def app_limits(self) -> list[Limit]:
        """The limits of every request."""
        declared = self._declared.apps
        return self._default_limits + [lim for app, lim in declared if app in (None, self.app)]

    def blueprint_limits(self, blueprint: object) -> list[Limit]:
        """Return the limits of a blueprint's requests."""
        return [limit for other, limit in self._declared.blueprints if other is blueprint]

    def report(self) -> dict[str, Any]:
        """Return the five fields that anybody may see."""
        open_states = (CircuitState.OPEN, CircuitState.FORCED_OPEN)
        refusing = self.breaker.state in open_states
        check = None if refusing else self.monitor.latest()
        return {
            "healthy": check is not None and check.healthy,
            "latency_ms": None if check is None else check.latency_ms,
            "circuit_state": self.breaker.state.value,
            "failure_count": self.breaker.failure_count,
            "is_mock": self.gate.serving_memory,
        }


class RedisGuard:
    """Redis behind a circuit breaker that fails closed, for any number of apps.

    :param app: an app to guard at once; with factories call :meth:`init_app` instead.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._declared = DeclaredLimits()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read and check the settings, and install the guard. No connection is made.

        :param app: the app.
        :raises ConfigurationError: for settings that cannot be honoured.
        :raises GuardError: if the app has a guard already.
        """
        if EXTENSION in app.extensions:
            raise GuardError("init_app was called twice for this app; one guard serves an app")
        guard = AppGuard(app, Settings.load(app.config), self._declared)
        app.extensions[EXTENSION] = guard
        replies.install(app)
        ratelimit.install(app)
        websocket.install(app)
        prefix = guard.settings.health_url_prefix
        if prefix is not None:
            guard.health = health_blueprint(prefix, guard.report)
            app.register_blueprint(guard.health)

    @property
    def client(self) -> redis.Redis:
        """The current app's guarded client, to be used as any ``redis.Redis``."""
        return self._guard().client

    def client_for(self, app: Flask) -> redis.Redis:
        """Return an app's guarded client outside any context, without I/O.

        :param app: an app that ``init_app`` was called with.
        """
        return self._guard(app).client

    def start(self, app: Flask | None = None) -> None:
        """Begin background checks in this process before any request, e.g. in ``post_fork``.

        :param app: the app; the current one if not given.
        """
        self._guard(app).monitor.start()

    @property
    def breaker(self) -> CircuitBreaker:
        """The current app's circuit breaker."""
        return self._guard().breaker

    @property
    def limiter(self) -> RateLimiter:
        """The current app's rate limiter."""
        return self._guard().limiter

    def limit_app(self, rates: Rates, *, app: Flask | None = None, **options: Any) -> None:
        """Limit every request but automatic ``OPTIONS``, static files and the health routes.

        URLs that match no route count as well.

        :param rates: as for :func:`~flask_redis_guard.rate_limited`, and so are the options.
        :param app: the app to limit; every app of this guard if not given.
        :raises ConfigurationError: for an argument that cannot be honoured.
        """
        self._declared.apps.append((app, Limit.declare(rates, **options)))

    def limit_blueprint(self, blueprint: Blueprint, rates: Rates, **options: Any) -> None:
        """Limit every request of a blueprint and of those nested in it, counted together.

        :param blueprint: the blueprint.
        :param rates: as for :func:`~flask_redis_guard.rate_limited`, and so are the options.
        :raises ConfigurationError: for an argument that cannot be honoured.
        """
        self._declared.blueprints.append((blueprint, Limit.declare(rates, **options)))

    def health(self) -> dict[str, Any]:
        """Return ``healthy``, ``latency_ms``, ``circuit_state``, ``failure_count``, ``is_mock``."""
        return self._guard().report()

    def require_redis(self, operation: str) -> None:
        """Refuse to go on unless Redis may be called now; costs no round trip.

        :param operation: what is to be done, for the error.
        :raises RedisUnavailable: if the breaker is open.
        """
        guard = self._guard()
        state = guard.breaker.state
        if not guard.gate.in_memory and state in (CircuitState.OPEN, CircuitState.FORCED_OPEN):
            raise CircuitOpen(operation, "circuit-open", guard.breaker.retry_after)

    @staticmethod
    def _guard(app: Flask | None = None) -> AppGuard:
        """Return what is kept for an app.

        :raises GuardError: without an app, or one that ``init_app`` was not called with.
        """
        if app is None and not has_app_context():
            raise GuardError(
                "There is no current app: use the guard in a request or `with app.app_context():`, "
                "or name the app: guard.client_for(app)"
            )
        target: Flask = app if app is not None else current_app._get_current_object()  # type: ignore[attr-defined]
        guard = target.extensions.get(EXTENSION)
        if not isinstance(guard, AppGuard):
            raise GuardError(f"The app {target.name!r} has no guard: call guard.init_app(app)")
        return guard
