"""Settings in, client out; no I/O."""

from __future__ import annotations

import inspect
import logging
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, parse_url
from redis.retry import Retry

from flask_redis_guard.checks import redact_url
from flask_redis_guard.client.connections import (
    GuardedConnection,
    TCPConnection,
    TLSConnection,
    UnixConnection,
    bind,
)
from flask_redis_guard.client.gate import Gate
from flask_redis_guard.client.guarded import GuardedRedis
from flask_redis_guard.client.memory import memory_pool
from flask_redis_guard.client.pool import GuardedPool
from flask_redis_guard.config import Settings
from flask_redis_guard.errors import ConfigurationError

logger = logging.getLogger("flask_redis_guard")

_CLASSES: dict[str, type[GuardedConnection]] = {
    "redis": TCPConnection,
    "rediss": TLSConnection,
    "unix": UnixConnection,
}

#: What the guard decides itself; a URL or REDIS_GUARD_CLIENT_OPTIONS may not contradict it.
_DECIDED = {
    "socket_timeout": "REDIS_GUARD_TIMEOUT",
    "socket_connect_timeout": "REDIS_GUARD_TIMEOUT",
    "max_connections": "REDIS_GUARD_MAX_CONNECTIONS",
    "timeout": "REDIS_GUARD_TIMEOUT",
    "retry": "nothing: one operation is one try",
    "retry_on_timeout": "nothing: one operation is one try",
    "retry_on_error": "nothing: one operation is one try",
    "connection_class": "nothing: the guard brings its own",
    "connection_pool": "nothing: the guard brings its own",
}


def build_client(settings: Settings, gate: Gate) -> redis.Redis:
    """Return the guarded client of one app; nothing connects yet.

    :param settings: the app's settings.
    :param gate: leads every operation of the client through its breaker.
    :raises ConfigurationError: for options that redis-py does not know or the guard decides.
    """
    scheme = urlsplit(settings.redis_url).scheme
    options = connection_options(settings)
    memory = None
    if gate.in_memory or gate.memory_only:
        shared = {k: options[k] for k in ("db", "decode_responses") if k in options}
        memory = memory_pool(**shared)
        if memory is None:
            _without_store(settings, gate)
    kind = bind(_CLASSES.get(scheme, TCPConnection), gate)
    pool = GuardedPool(
        gate,
        memory,
        connection_class=kind,
        max_connections=settings.max_connections,
        **_understood(kind, options),
    )
    return GuardedRedis(connection_pool=pool)


def _without_store(settings: Settings, gate: Gate) -> None:
    remedy = "pip install 'flask-redis-guard[dev]'"
    if gate.memory_only:
        raise ConfigurationError("REDIS_URL", settings.redis_url, f"memory:// needs {remedy}")
    gate.in_memory = False  # so even development fails closed
    logger.warning("There is no in-memory store to fall back to in development: %s", remedy)


def connection_options(settings: Settings) -> dict[str, Any]:
    """Return the keyword arguments of a connection: from the URL, the options, and the guard.

    :raises ConfigurationError: for an option that the guard decides.
    """
    given: dict[str, Any] = {}
    if urlsplit(settings.redis_url).scheme in _CLASSES:
        try:
            given = dict(parse_url(settings.redis_url))
        except ValueError as exc:
            raise ConfigurationError(
                "REDIS_URL", redact_url(settings.redis_url), f"valid options in the URL ({exc})"
            ) from None
    given.pop("connection_class", None)
    given.update(settings.client_options or {})
    for name in given:
        if name in _DECIDED:
            raise ConfigurationError(name, given[name], f"not here; use {_DECIDED[name]}")
    return {
        "protocol": 2,  # on purpose: no push messages among the replies, one message less to connect
        **given,
        "socket_timeout": settings.timeout,
        "socket_connect_timeout": settings.timeout,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_timeout": False,
        "maint_notifications_config": _no_maintenance_notifications(),
    }


def _no_maintenance_notifications() -> Any:
    """Return what switches them off: they would switch off the check for a dirty connection."""
    try:
        from redis.maint_notifications import MaintNotificationsConfig
    except ImportError:  # redis-py before 7
        return None
    return MaintNotificationsConfig(enabled=False)


def _understood(kind: type[Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that this version of redis-py knows.

    :raises ConfigurationError: for one that only a user can have asked for.
    """
    known: set[str] = set()
    for base in kind.__mro__:
        if issubclass(base, AbstractConnection):
            known.update(inspect.signature(base.__init__).parameters)
    optional = {"maint_notifications_config", "protocol"}
    for name in options:
        if name not in known and name not in optional:
            raise ConfigurationError(
                "REDIS_GUARD_CLIENT_OPTIONS", name, "options of redis-py's connection classes"
            )
    return {name: value for name, value in options.items() if name in known}
