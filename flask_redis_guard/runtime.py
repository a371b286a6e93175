"""All that the extension keeps for one app, put together from the parts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import redis
from flask import Blueprint, Flask, request_started

from flask_redis_guard import signals
from flask_redis_guard.client.gate import Gate
from flask_redis_guard.client.topology.factory import build_client
from flask_redis_guard.config import Settings
from flask_redis_guard.core.breaker import CircuitBreaker, CircuitState
from flask_redis_guard.core.process import ProcessLock
from flask_redis_guard.core.rates import Decision
from flask_redis_guard.errors import ConfigurationError
from flask_redis_guard.limiting.limiter import RateLimiter
from flask_redis_guard.limiting.places import PlaceKeeper
from flask_redis_guard.limiting.slots import ConcurrencyLimiter
from flask_redis_guard.observe.diagnosis import Finding, diagnose
from flask_redis_guard.observe.outage import OutageWatch
from flask_redis_guard.observe.probe import Monitor
from flask_redis_guard.observe.report import HealthReport
from flask_redis_guard.web.alerts.story import Alerts
from flask_redis_guard.web.cli import redis_guard_group
from flask_redis_guard.web.health.routes import Authorization, health_blueprint
from flask_redis_guard.web.limits.commands import limits_command, reset_command
from flask_redis_guard.web.limits.declared import DeclaredLimits, Limit
from flask_redis_guard.web.sessions import SessionStore

if TYPE_CHECKING:
    from flask_redis_guard.web.metrics import Metrics


class AppGuard:
    """All that the extension keeps for one app; nothing is shared between apps.

    :param app: the app.
    :param settings: its checked settings.
    """

    def __init__(self, app: Flask, settings: Settings, declared: DeclaredLimits) -> None:
        self.app = app
        self.settings = settings
        self.warned: set[str] = set()
        self._making = ProcessLock()
        self._limiter: RateLimiter | None = None
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
        self.report = HealthReport(self.gate, self.monitor, self.watch, lambda: self.client)
        # Made here and not on first use: two of them would each know half of the connections.
        self.places = PlaceKeeper(lambda: self.concurrency, processes=settings.processes)
        self._follow_signals()
        self.metrics = self._build_metrics()
        self.alerts = (
            Alerts(
                app,
                settings.alert_delivery,
                cooldown=settings.alert_cooldown_seconds,
                timeout=settings.alert_timeout,
            )
            if settings.alert_delivery is not None
            else None
        )

    def send(self, signal: Any, **event: Any) -> None:
        """Send a signal with the app as the sender."""
        signals.send(signal, self.app, **event)

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
        limiter = RateLimiter(
            self.client,
            prefix=self.settings.key_prefix,
            secret=secret.encode() if isinstance(secret, str) else secret,
            denial_cache_size=self.settings.denial_cache_size,
            processes=self.settings.processes,
        )
        if self.metrics is not None:
            self.metrics.watch_limiter(limiter)
        return limiter

    @cached_property
    def concurrency(self) -> ConcurrencyLimiter:
        """The concurrency limiter, with the rate limiter's keys."""
        return ConcurrencyLimiter(self.client, self.limiter.keys)

    @cached_property
    def sessions(self) -> SessionStore:
        """The session store."""
        return SessionStore(
            lambda: self.client,
            prefix=self.settings.key_prefix,
            max_bytes=self.settings.session_max_bytes,
            max_per_user=self.settings.session_max_per_user,
            on_unreadable=lambda reason: self.send(signals.session_unreadable, reason=reason),
            on_failure=self._session_failed,
        )

    @property
    def app_limits(self) -> list[Limit]:
        """The limits of every request."""
        declared = self._declared.apps
        return self._default_limits + [lim for app, lim in declared if app in (None, self.app)]

    def blueprint_limits(self, blueprint: object) -> list[Limit]:
        """Return the limits of a blueprint's requests."""
        return [limit for other, limit in self._declared.blueprints if other is blueprint]

    def _session_failed(self, operation: str) -> None:
        if self.metrics is not None:
            self.metrics.session_failed(operation)

    def diagnose(self) -> Iterator[Finding]:
        """Go through the steps of ``flask redis-guard check``."""

        def run_scripts() -> None:
            self.limiter.hit("1000/minute", "check", scope="redis-guard check")
            self.limiter.reset("1000/minute", "check", scope="redis-guard check")

        key = self.settings.key_prefix + "probe:check"
        return diagnose(self.gate, lambda: self.client, key, run_scripts)

    def _follow_signals(self) -> None:
        """Feed the report, and let the first request of a process start the background check.

        The receivers are kept here, for blinker keeps weak references only.
        """

        def changed(_: Flask, *, current: CircuitState, **__: Any) -> None:
            self.report.changed(current)

        def refused(_: Flask, **__: Any) -> None:
            self.report.refused()

        def limited(_: Flask, *, decision: Decision, shadow: bool, **__: Any) -> None:
            if not shadow:
                self.report.limited(decision)

        def request_began(_: Flask, **__: Any) -> None:
            self.monitor.start()

        request_started.connect(request_began, self.app)
        signals.circuit_state_changed.connect(changed, self.app)
        signals.request_refused.connect(refused, self.app)
        signals.rate_limit_exceeded.connect(limited, self.app)
        self._receivers = (changed, refused, limited, request_began)

    def _build_metrics(self) -> Metrics | None:
        if not self.settings.metrics:
            return None
        try:
            from flask_redis_guard.web.metrics import Metrics
        except ImportError:
            remedy = "False, or pip install 'flask-redis-guard[prometheus]'"
            raise ConfigurationError("REDIS_GUARD_METRICS", True, remedy) from None
        return Metrics(self.app, self.gate)

    def mount(self) -> None:
        """Add the health routes and the commands to the app."""
        settings, metrics = self.settings, self.metrics
        if settings.health_url_prefix is not None:
            authorization = Authorization(
                settings.health_token,
                settings.health_authorize,
                development=settings.development,
            )
            scrape = None if metrics is None else metrics.scrape
            self.health = health_blueprint(
                settings.health_url_prefix, self.report, authorization, scrape
            )
            self.app.register_blueprint(self.health)
        self.app.cli.add_command(
            redis_guard_group(
                self.report,
                self.diagnose,
                self.monitor.check,
                limits_command(self.app, self),
                reset_command(self.app, self),
                health_path=settings.health_url_prefix or "",
                token=settings.health_token,
            )
        )
