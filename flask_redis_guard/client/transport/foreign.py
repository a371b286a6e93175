"""Pools that redis-py or its user made, as a guarded client is given them.

Libraries build a second client of the class of the one that they were handed, on a pool of their
own: RQ's scheduler and worker pool do. What they get is a guarded pool with the same options.
"""

from __future__ import annotations

import weakref
from typing import Any

from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.retry import Retry

from flask_redis_guard.client.gate import Gate
from flask_redis_guard.client.operation import Operation
from flask_redis_guard.client.transport.connections import (
    GuardedConnection,
    TCPConnection,
    TLSConnection,
    UnixConnection,
    bind,
)
from flask_redis_guard.client.transport.pool import GuardedPool
from flask_redis_guard.core.breaker import CircuitBreaker

_KINDS: dict[type[Any], type[GuardedConnection]] = {
    Connection: TCPConnection,
    SSLConnection: TLSConnection,
    UnixDomainSocketConnection: UnixConnection,
}

#: Where a connection leads.
_PLACE = ("host", "port", "path")

#: The guarded pool of each foreign one: clients that share a pool share its guard.
_adopted: weakref.WeakKeyDictionary[Any, GuardedPool] = weakref.WeakKeyDictionary()


class ForeignConnection(GuardedConnection):
    """What a class that we do not know is mixed with: it connects by itself, in one step."""

    _reads_itself = True

    def locate(self) -> None:
        sentinels: Any = getattr(self, "connection_pool", None)
        if hasattr(sentinels, "get_master_address"):
            servers = sentinels.rotate_slaves
            find = sentinels.get_master_address if sentinels.is_master else lambda: next(servers())
            self.host, self.port = find()

    def _dial(self, operation: Operation) -> Any:
        self.locate()
        return super()._connect()  # type: ignore[misc]


def decided(timeout: float) -> dict[str, Any]:
    """Return the options of every connection that nobody else may choose.

    :param timeout: seconds for one operation.
    """
    return {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
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


def adopt(pool: Any, gate: Gate | None, place: dict[str, Any] | None) -> GuardedPool:
    """Return the guarded pool that stands for a pool of redis-py's.

    A server that is not the client's own has a breaker of its own.

    :param pool: any ``redis.ConnectionPool``.
    :param gate: of the client of whose class the new one is.
    :param place: where that client's connections lead.
    """
    if isinstance(pool, GuardedPool):
        return pool
    known = _adopted.get(pool)
    if known is not None:
        return known
    kind = pool.connection_class
    own: Gate | None = getattr(kind, "gate", None)
    options = dict(pool.connection_kwargs)
    if own is None and gate is not None and place == place_of(options):
        own = gate
    if own is None:
        own = Gate(CircuitBreaker(), 0.5 if gate is None else gate.timeout)
    if not issubclass(kind, GuardedConnection):
        base = _KINDS.get(kind) or type(kind.__name__, (ForeignConnection, kind), {})
        kind = bind(base, own)
    dropped = ("maint", "retry_on_error", "cache")
    options = {name: value for name, value in options.items() if not name.startswith(dropped)}
    decisions = {name: value for name, value in decided(own.timeout).items() if value is not None}
    guarded = GuardedPool(
        own,
        connection_class=kind,
        max_connections=pool.max_connections,
        **{**options, **decisions},
    )
    _adopted[pool] = guarded
    return guarded


def place_of(options: dict[str, Any]) -> dict[str, Any]:
    """Return where connections with these options lead."""
    defaults = {} if "path" in options else {"host": "localhost", "port": 6379}
    return {**defaults, **{name: options[name] for name in _PLACE if name in options}}
