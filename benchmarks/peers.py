"""Each contender's own way to decide a limit, to limit a view, and to guard a call.

A contender that is not installed is left out. All of them use the server's database that the URL
names, and keys of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import redis
from flask import Flask, jsonify, request

from flask_redis_guard import Rate, RedisGuard, rate_limited

Decide = Callable[[str], Any]
#: Amount and seconds.
Quota = tuple[int, int]

UNITS = {1: "second", 60: "minute", 3600: "hour", 86400: "day"}
BASE = "redis-py INCR"
ALGORITHMS = ("sliding-window", "token-bucket", "fixed-window")


def guarded_app(url: str, **settings: Any) -> tuple[Flask, RedisGuard]:
    """Return an app with a guard in production, as a user makes it."""
    app = Flask("guarded")
    app.config.update(
        REDIS_URL=url,
        ENVIRONMENT="production",
        REDIS_GUARD_HEALTH_CHECK_INTERVAL=0,
        **settings,
    )
    return app, RedisGuard(app)


def deciders(url: str, quotas: list[Quota]) -> dict[str, Decide]:
    """Return what decides these quotas for one key, by contender.

    :param url: the server.
    :param quotas: one or several; a library without a joint decision is asked for each in turn.
    """
    client = redis.Redis.from_url(url, max_connections=2000)
    found: dict[str, Decide] = {BASE: lambda key: client.incr("plain:" + key)}
    for algorithm in ALGORITHMS:
        app, guard = guarded_app(url, REDIS_GUARD_KEY_PREFIX=f"{algorithm}:")
        with app.app_context():
            limiter = guard.limiter
        rates = tuple(Rate(*quota, algorithm=algorithm) for quota in quotas)
        found[f"flask-redis-guard {algorithm}"] = _ours(limiter, rates)
    found.update(_limits(url, quotas))
    found.update(_throttled(url, quotas))
    return found


def _ours(limiter: Any, rates: Any) -> Decide:
    return lambda key: limiter.hit(rates, key).allowed


def _limits(url: str, quotas: list[Quota]) -> dict[str, Decide]:
    try:
        import limits
        from limits.storage import RedisStorage
        from limits.strategies import STRATEGIES
    except ImportError:
        return {}
    items = [limits.RateLimitItemPerSecond(*quota) for quota in quotas]

    def hit(strategy: Any) -> Decide:
        return lambda key: all(strategy.hit(item, key) for item in items)

    return {
        f"limits {name}": hit(kind(RedisStorage(url, key_prefix=name)))
        for name, kind in STRATEGIES.items()
    }


def _throttled(url: str, quotas: list[Quota]) -> dict[str, Decide]:
    try:
        from throttled import RateLimiterType, RedisStore, Throttled, per_duration
    except ImportError:
        return {}
    store = RedisStore(url)

    def hit(kind: Any) -> Decide:
        parts = [
            Throttled(
                using=kind.value,
                quota=per_duration(timedelta(seconds=seconds), amount, burst=amount),
                store=store,
                key_prefix=f"t{seconds}",
            )
            for amount, seconds in quotas
        ]
        return lambda key: all(not part.limit(key).limited for part in parts)

    return {f"throttled-py {kind.value}": hit(kind) for kind in RateLimiterType}


# -- apps -----------------------------------------------------------------------------------------


def ping() -> Any:
    """The view of all apps."""
    return jsonify(ok=True)


def client_id() -> str:
    """Tell who is counted."""
    return request.headers.get("X-Client", "-")


def unlimited(app: Flask, url: str, quotas: list[Quota]) -> None:
    """Serve the view without any limit: the baseline."""
    app.add_url_rule("/", "ping", ping)


def ours(app: Flask, url: str, quotas: list[Quota]) -> None:
    """Limit the view with this package."""
    app.config.update(REDIS_URL=url, ENVIRONMENT="production")
    RedisGuard(app)
    text = ";".join(f"{amount}/{UNITS[seconds]}" for amount, seconds in quotas)
    app.add_url_rule("/", "ping", rate_limited(text, key=client_id)(ping))


def flask_limiter(app: Flask, url: str, quotas: list[Quota]) -> None:
    """Limit the view with Flask-Limiter and the sliding window of ``limits``."""
    from flask_limiter import Limiter

    limiter = Limiter(
        key_func=client_id,
        app=app,
        storage_uri=url,
        strategy="sliding-window-counter",
        headers_enabled=True,
    )
    text = ";".join(f"{amount} per {UNITS[seconds]}" for amount, seconds in quotas)
    app.add_url_rule("/", "ping", limiter.limit(text)(ping))


def throttled_py(app: Flask, url: str, quotas: list[Quota]) -> None:
    """Limit the view with throttled-py's Flask extension; stacked, as it has no joint limit."""
    from throttled import RedisStore, per_duration
    from throttled.contrib.flask import Limiter

    view: Any = ping
    store = RedisStore(url)
    for amount, seconds in quotas:
        quota = per_duration(timedelta(seconds=seconds), amount, burst=amount)

        def key(period: int = seconds) -> str:
            return f"{client_id()}:{period}"

        limiter = Limiter(quota, app=app, store=store, using="sliding_window", key_func=key)
        view = limiter.limit()(view)
    app.add_url_rule("/", "ping", view)


#: What makes each contender's app.
APPS: dict[str, Callable[[Flask, str, list[Quota]], None]] = {
    "no limiter": unlimited,
    "flask-redis-guard": ours,
    "Flask-Limiter": flask_limiter,
    "throttled-py": throttled_py,
}


def make_app(name: str, url: str, quotas: list[Quota]) -> Flask:
    """Return a contender's app.

    :raises ImportError: if it is not installed.
    """
    app = Flask("bench")
    app.logger.setLevel(logging.CRITICAL)
    APPS[name](app, url, quotas)
    return app
