"""What users' type checkers see. ``make types`` checks this file; it is never run.

An unused ``type: ignore`` is an error, so each of them proves that the line is refused.
"""

from __future__ import annotations

from typing import Any

import redis
from flask import Blueprint, Flask
from typing_extensions import assert_type
from werkzeug.exceptions import HTTPException

from flask_redis_guard import (
    Alert,
    CircuitBreaker,
    CircuitOpen,
    CircuitState,
    ConfigurationError,
    Decision,
    GuardedSessionInterface,
    GuardError,
    Rate,
    RateLimiter,
    RateLimitExceeded,
    RedisGuard,
    RedisTimeout,
    RedisUnavailable,
    circuit_state_changed,
    concurrency_limited,
    rate_limited,
    session,
)

app = Flask(__name__)
guard = RedisGuard()
assert_type(guard.init_app(app), None)
RedisGuard(app)
RedisGuard("app")  # type: ignore[arg-type]
guard.init_app()  # type: ignore[call-arg]

assert_type(guard.client, redis.Redis)
assert_type(guard.client_for(app), redis.Redis)
assert_type(guard.breaker, CircuitBreaker)
assert_type(guard.breaker.state, CircuitState)
assert_type(guard.breaker.retry_after, float)
assert_type(guard.limiter, RateLimiter)
assert_type(guard.health(), dict[str, Any])
guard.require_redis("password reset")
guard.client = redis.Redis()  # type: ignore[assignment]
guard.limit_app("100/minute", app=app)
guard.limit_blueprint(Blueprint("b", __name__), [Rate(5, 60), "1/second"], key="address")


@rate_limited("5/minute", key=lambda: "me", methods=["POST"])
def view(number: int) -> str:
    """Keep its signature under the decorator."""
    return str(number)


assert_type(view(1), str)
view("1")  # type: ignore[arg-type]
rate_limited()  # type: ignore[call-arg]
rate_limited("5/minute", shadow="yes")  # type: ignore[arg-type]
rate_limited("5/minute", no_such_option=1)  # type: ignore[call-arg]
rate_limited("5/minute", on_outage="dney")  # type: ignore[arg-type]
rate_limited("5/minute", algorithm="guess")  # type: ignore[arg-type]
concurrency_limited(2, on_outage="local")  # type: ignore[arg-type]
guard.limit_app("100/minute", on_outage="local", algorithm="token-bucket", shadow=True)
guard.limit_app("100/minute", on_outge="local")  # type: ignore[call-arg]
guard.limit_blueprint(Blueprint("c", __name__), "5/minute", key=3.5)  # type: ignore[arg-type]
assert_type(guard.exempt(Blueprint("d", __name__)), Blueprint)

decision = guard.limiter.hit("5/minute", "subject")
assert_type(decision, Decision)
assert_type(decision.allowed, bool)
assert_type(decision.rate, Rate)
Rate("5", 60)  # type: ignore[arg-type]


@circuit_state_changed.connect
def receiver(sender: Flask, **event: Any) -> None:
    """Receive any event."""


def handle(error: RedisUnavailable) -> tuple[str, str, int]:
    """Find what the error offers."""
    as_redis: redis.ConnectionError = error
    as_http: HTTPException = error
    del as_redis, as_http
    return error.operation, error.reason, error.retry_after


def catch() -> None:
    """Catch by every base."""
    try:
        guard.client.get("key")
    except CircuitOpen as error:
        handle(error)
    except RedisTimeout as error:
        as_timeout: redis.TimeoutError = error
        handle(error)
        raise as_timeout from None
    except RateLimitExceeded as error:
        assert_type(error.decision, Decision)
    except ConfigurationError as error:
        as_value_error: ValueError = error
        raise as_value_error from None
    except GuardError as error:
        handle(error)  # type: ignore[arg-type]


app.session_interface = GuardedSessionInterface(guard)
GuardedSessionInterface(app)  # type: ignore[arg-type]
session["user"] = 5
assert_type(session.bind_user(5), None)
assert_type(session.regenerate(), None)
assert_type(session.unbind_user(), None)
assert_type(session.sid, str)
assert_type(session.identity().user, str | None)
session.bind_user(None)  # type: ignore[arg-type]
session.bind()  # type: ignore[attr-defined]


def deliver(alert: Alert) -> None:
    """Find what an alert offers."""
    assert_type(alert.incident, str)
    assert_type(alert.as_cloudevent(), dict[str, Any])


app.config["REDIS_GUARD_ALERT_DELIVERY"] = deliver
