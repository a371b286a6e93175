"""``RedisGuard``: puts the parts together for each app, and hands them out."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar

import redis
from flask import Blueprint, Flask

from flask_redis_guard import runtime
from flask_redis_guard.config import Settings, warn_of_left_overs
from flask_redis_guard.core.breaker import CircuitBreaker
from flask_redis_guard.core.process import gevent_is_to_patch
from flask_redis_guard.errors import CircuitOpen, ConfigurationError, GuardError
from flask_redis_guard.host.operators import WorkerReport
from flask_redis_guard.limiting.limiter import RateLimiter
from flask_redis_guard.runtime import EXTENSION, OfCurrentApp, Runtime
from flask_redis_guard.sessions.store import SessionStore
from flask_redis_guard.web import refusals
from flask_redis_guard.web.alerts import Alerts
from flask_redis_guard.web.cli import host_commands, redis_guard_group
from flask_redis_guard.web.health.routes import Authorization, health_blueprint
from flask_redis_guard.web.limits import ratelimit
from flask_redis_guard.web.limits.cli import limit_commands
from flask_redis_guard.web.limits.declared import AppLimits, DeclaredLimits, LimitOptions, Rates
from flask_redis_guard.web.limits.resolve import Routes, below_limits
from flask_redis_guard.web.websockets import decorator as websockets

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from flask_redis_guard.web.metrics import Metrics

T = TypeVar("T")

logger = logging.getLogger("flask_redis_guard")


class RedisGuard:
    """Redis behind a circuit breaker that fails closed, for any number of apps.

    :param app: an app to guard at once; with factories call :meth:`init_app` instead.
    """

    client = OfCurrentApp[redis.Redis](
        "client", "The current app's guarded client, to be used as any ``redis.Redis``."
    )
    limiter = OfCurrentApp[RateLimiter]("limiter", "The current app's rate limiter.")
    sessions = OfCurrentApp[SessionStore]("sessions", "The current app's session store.")

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
        guarded = Runtime(app, Settings.load(app.config))
        warn_of_left_overs(
            app.config,
            limiter="limiter" in app.extensions,
            sessions=type(app.session_interface).__module__.startswith("flask_session"),
        )
        metrics = _install_metrics(guarded)
        _install_alerts(guarded)
        app.extensions[EXTENSION] = guarded
        self._declared.claim()
        refusals.install(app, guarded.bus)
        limits = AppLimits(app, guarded.settings, self._declared)
        routes = ratelimit.install(app, guarded, limits)
        websockets.install(routes)
        _mount(guarded, metrics, routes)

    def client_for(self, app: Flask) -> redis.Redis:
        """Return an app's guarded client outside any context, without I/O.

        :param app: an app that ``init_app`` was called with.
        """
        return runtime.of(app).client

    def start(self, app: Flask | None = None) -> None:
        """Begin background checks in this process before any request, with one at once.

        Where Redis is far away, the first requests find the primary, a cluster's map and a
        connection. In gunicorn's hook ``post_worker_init``: ``post_fork`` comes before gevent's
        patches.

        :param app: the app; the current one if not given.
        """
        guarded = runtime.current() if app is None else runtime.of(app)
        if gevent_is_to_patch():
            logger.warning(
                "guard.start() was called before the server lets gevent patch the standard "
                "library: the background check begins with the first request instead. With "
                "gunicorn call it in post_worker_init, not in post_fork."
            )
        else:
            guarded.look()
            guarded.monitor.start(at_once=True)

    @property
    def breaker(self) -> CircuitBreaker:
        """The current app's circuit breaker."""
        guarded = runtime.current()
        guarded.look()
        return guarded.breaker

    def workers(self, app: Flask | None = None) -> list[WorkerReport]:
        """Return the app's worker processes on this host, as each has last said itself.

        :param app: the app; the current one if not given.
        :returns: none where the workers share nothing (``REDIS_GUARD_HOST_STATE``).
        """
        return (runtime.current() if app is None else runtime.of(app)).workers()

    def limit_app(
        self, rates: Rates, *, app: Flask | None = None, **options: Unpack[LimitOptions]
    ) -> None:
        """Limit every request but automatic ``OPTIONS``, static files and the health routes.

        URLs that match no route, or no static file, count as well.

        :param rates: as for :func:`~flask_redis_guard.rate_limited`, and so are the options.
        :param app: the app to limit; every app of this guard if not given.
        :raises ConfigurationError: for an argument that cannot be honoured.
        """
        self._declared.limit_app(app, rates, options)

    def limit_blueprint(
        self, blueprint: Blueprint, rates: Rates, **options: Unpack[LimitOptions]
    ) -> None:
        """Limit every request of a blueprint and of those nested in it, counted together.

        :param blueprint: the blueprint.
        :param rates: as for :func:`~flask_redis_guard.rate_limited`, and so are the options.
        :raises ConfigurationError: for an argument that cannot be honoured.
        """
        self._declared.limit_blueprint(blueprint, rates, options)

    def exempt(self, target: T) -> T:
        """Exempt a view, a class of views or a blueprint from the limits of whole apps.

        Limits of its own, and of its blueprint, go on applying. May be used as a decorator.

        :param target: the view function, the view class or the blueprint with those nested in it.
        :raises ConfigurationError: for anything else.
        """
        for one in below_limits(target):
            self._declared.exempt(one)
        return target

    def sessions_for(self, app: Flask) -> SessionStore:
        """Return an app's session store outside any context, without I/O.

        :param app: an app that ``init_app`` was called with.
        """
        return runtime.of(app).sessions

    def health(self) -> dict[str, Any]:
        """Return ``healthy``, ``latency_ms``, ``circuit_state``, ``failure_count``, ``is_mock``."""
        return runtime.current().report.summary()

    def require_redis(self, operation: str) -> None:
        """Refuse to go on unless Redis may be called now; costs no round trip.

        :param operation: what is to be done, for the error.
        :raises RedisUnavailable: if the breaker is open.
        """
        guarded = runtime.current()
        guarded.look()
        if guarded.breaker.refusing and not guarded.gate.in_memory:
            raise CircuitOpen(operation, "circuit-open", guarded.breaker.retry_after)


def _install_metrics(guarded: Runtime) -> Metrics | None:
    """Count what happens, if the settings ask for it.

    :raises ConfigurationError: without ``prometheus_client``.
    """
    if not guarded.settings.metrics:
        return None
    try:
        from flask_redis_guard.web.metrics import Metrics
    except ImportError:
        remedy = "False, or pip install 'flask-redis-guard[prometheus]'"
        raise ConfigurationError("REDIS_GUARD_METRICS", True, remedy) from None
    metrics = Metrics(guarded.app, guarded.gate, None if guarded.host is None else guarded.workers)
    guarded.add(metrics)
    return metrics


def _install_alerts(guarded: Runtime) -> None:
    settings = guarded.settings
    if settings.alert_delivery is not None:
        guarded.add(
            Alerts(
                guarded.app.name,
                guarded.bus,
                settings.alert_delivery,
                cooldown=settings.alert_cooldown_seconds,
                timeout=settings.alert_timeout,
                host=guarded.host,
            )
        )


def _mount(guarded: Runtime, metrics: Metrics | None, routes: Routes) -> None:
    """Add the health routes and the commands to the app."""
    app, settings = guarded.app, guarded.settings
    if settings.health_url_prefix is not None:
        authorization = Authorization(
            settings.health_token, settings.health_authorize, development=settings.development
        )
        scrape = None if metrics is None else metrics.scrape
        guarded.health = health_blueprint(
            settings.health_url_prefix,
            guarded.report,
            authorization,
            scrape,
            ready_means=settings.ready,
            operators=guarded.operators,
        )
        app.register_blueprint(guarded.health)
    app.cli.add_command(
        redis_guard_group(
            guarded.report,
            guarded.diagnose,
            guarded.monitor.check,
            *limit_commands(app, guarded, routes),
            *host_commands(guarded.host),
            health_path=settings.health_url_prefix or "",
            token=settings.health_token,
            begin=lambda: None if guarded.host is None else guarded.host.look_on(),
        )
    )
