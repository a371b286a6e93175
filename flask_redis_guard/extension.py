"""``RedisGuard``: what an app is guarded with, and the way to what is kept for it."""

from __future__ import annotations

from typing import Any

import redis
from flask import Blueprint, Flask, current_app, has_app_context

from flask_redis_guard.config import Settings
from flask_redis_guard.core.breaker import CircuitBreaker
from flask_redis_guard.errors import CircuitOpen, GuardError
from flask_redis_guard.limiting.limiter import RateLimiter
from flask_redis_guard.runtime import AppGuard
from flask_redis_guard.web import refusals
from flask_redis_guard.web.host import EXTENSION
from flask_redis_guard.web.limits import ratelimit
from flask_redis_guard.web.limits.declared import DeclaredLimits, Rates
from flask_redis_guard.web.sessions import SessionStore
from flask_redis_guard.web.websockets import decorator as websockets


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
        self._declared.claim()
        refusals.install(app)
        ratelimit.install(app)
        websockets.install(app)
        guard.mount()

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

        URLs that match no route, or no static file, count as well.

        :param rates: as for :func:`~flask_redis_guard.rate_limited`, and so are the options.
        :param app: the app to limit; every app of this guard if not given.
        :raises ConfigurationError: for an argument that cannot be honoured.
        """
        self._declared.limit_app(app, rates, options)

    def limit_blueprint(self, blueprint: Blueprint, rates: Rates, **options: Any) -> None:
        """Limit every request of a blueprint and of those nested in it, counted together.

        :param blueprint: the blueprint.
        :param rates: as for :func:`~flask_redis_guard.rate_limited`, and so are the options.
        :raises ConfigurationError: for an argument that cannot be honoured.
        """
        self._declared.limit_blueprint(blueprint, rates, options)

    @property
    def sessions(self) -> SessionStore:
        """The current app's session store."""
        return self._guard().sessions

    def sessions_for(self, app: Flask) -> SessionStore:
        """Return an app's session store outside any context, without I/O.

        :param app: an app that ``init_app`` was called with.
        """
        return self._guard(app).sessions

    def health(self) -> dict[str, Any]:
        """Return ``healthy``, ``latency_ms``, ``circuit_state``, ``failure_count``, ``is_mock``."""
        return self._guard().report.summary()

    def require_redis(self, operation: str) -> None:
        """Refuse to go on unless Redis may be called now; costs no round trip.

        :param operation: what is to be done, for the error.
        :raises RedisUnavailable: if the breaker is open.
        """
        guard = self._guard()
        if guard.breaker.refusing and not guard.gate.in_memory:
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
