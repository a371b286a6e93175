"""Redis for Flask's security controls, behind a circuit breaker that fails closed."""

from flask_redis_guard.core.breaker import CircuitBreaker, CircuitState
from flask_redis_guard.core.rates import Decision, Rate
from flask_redis_guard.errors import (
    CircuitOpen,
    ConfigurationError,
    GuardError,
    RateLimitExceeded,
    RedisTimeout,
    RedisUnavailable,
    SessionTooLarge,
)
from flask_redis_guard.extension import RedisGuard
from flask_redis_guard.limiting.limiter import RateLimiter
from flask_redis_guard.signals import (
    circuit_state_changed,
    downtime_extended,
    failure_rate_high,
    rate_limit_exceeded,
    redis_failure,
    redis_recovered,
    request_refused,
    session_unreadable,
)
from flask_redis_guard.web.alerts import Alert
from flask_redis_guard.web.limits.concurrency import concurrency_limited
from flask_redis_guard.web.limits.ratelimit import rate_limited
from flask_redis_guard.web.sessions import GuardedSessionInterface, SessionStore, session
from flask_redis_guard.web.websockets.decorator import websocket_limited

__all__ = [
    "Alert",
    "CircuitBreaker",
    "CircuitOpen",
    "CircuitState",
    "ConfigurationError",
    "Decision",
    "GuardError",
    "GuardedSessionInterface",
    "Rate",
    "RateLimitExceeded",
    "RateLimiter",
    "RedisGuard",
    "RedisTimeout",
    "RedisUnavailable",
    "SessionStore",
    "SessionTooLarge",
    "circuit_state_changed",
    "concurrency_limited",
    "downtime_extended",
    "failure_rate_high",
    "rate_limit_exceeded",
    "rate_limited",
    "redis_failure",
    "redis_recovered",
    "request_refused",
    "session",
    "session_unreadable",
    "websocket_limited",
]
