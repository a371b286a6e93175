"""Settings in, client out; no I/O."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Callable
from typing import Any, cast

import redis
from redis.connection import AbstractConnection, parse_url

from flask_redis_guard.client.gate import Gate
from flask_redis_guard.client.redis import GuardedRedis
from flask_redis_guard.client.topology.cluster import GuardedCluster
from flask_redis_guard.client.topology.memory import memory_pool
from flask_redis_guard.client.topology.nodes import (
    NodePool,
    NodeTCPConnection,
    NodeTLSConnection,
)
from flask_redis_guard.client.topology.primary import (
    SentinelPool,
    SentinelTCPConnection,
    SentinelTLSConnection,
)
from flask_redis_guard.client.topology.sentinel import Sentinels
from flask_redis_guard.client.topology.shards import ClusterBreaker
from flask_redis_guard.client.topology.urls import Topology, parse_topology
from flask_redis_guard.client.transport.connections import (
    GuardedConnection,
    TCPConnection,
    TLSConnection,
    UnixConnection,
    bind,
    knows_pushes,
)
from flask_redis_guard.client.transport.foreign import decided, place_of
from flask_redis_guard.client.transport.pool import GuardedPool
from flask_redis_guard.config import HIDDEN, Settings, redact_url, split_url
from flask_redis_guard.core.breaker import CircuitBreaker
from flask_redis_guard.errors import ConfigurationError

logger = logging.getLogger("flask_redis_guard")

_CLASSES: dict[str, type[GuardedConnection]] = {
    "redis": TCPConnection,
    "rediss": TLSConnection,
    "unix": UnixConnection,
}

#: Seconds between two questions to each sentinel.
SENTINEL_INTERVAL = 1.0

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
    "maint_notifications_config": "nothing: they switch off the check for a dirty connection",
    "cache": "nothing: redis-py's cache reads from connections that others are using",
    "cache_config": "nothing: redis-py's cache reads from connections that others are using",
    "single_connection_client": "client.client(): a client that all share needs a pool",
}


def breaker_class(redis_url: str) -> type[CircuitBreaker]:
    """Return what stands before a client: one breaker, or one for each primary of a cluster.

    :param redis_url: the client's URL.
    """
    return ClusterBreaker if split_url(redis_url).scheme.endswith("+cluster") else CircuitBreaker


def build_client(settings: Settings, gate: Gate) -> redis.Redis:
    """Return the guarded client of one app; nothing connects yet.

    :param settings: the app's settings.
    :param gate: leads every operation of the client through its breaker.
    :returns: a ``redis.Redis``; on a cluster a ``redis.RedisCluster``, which is no subclass of it
        but has the same commands.
    :raises ConfigurationError: for a URL that cannot be read, and for options that redis-py does
        not know or the guard decides.
    """
    scheme = split_url(settings.redis_url).scheme
    if "+" not in scheme:
        options = _connection_options(settings, _parsed(settings.redis_url, parse_url))
        kind = bind(_CLASSES.get(scheme, TCPConnection), gate)
        guarded = bind(GuardedRedis, gate, app_gate=gate, place=place_of(options))
        pool = _pool(settings, gate, kind, options)
        _follow(options, pool.retire_all)
        return cast("redis.Redis", guarded(connection_pool=pool))
    topology: Topology = _parsed(settings.redis_url, parse_topology)
    if topology.kind == "cluster":
        return cast("redis.Redis", _cluster(settings, gate, topology))
    return _sentinel(settings, gate, topology)


def _pool(
    settings: Settings,
    gate: Gate,
    kind: type[Any],
    options: dict[str, Any],
    pool_class: type[GuardedPool] = GuardedPool,
) -> GuardedPool:
    memory = None
    if gate.in_memory or gate.memory_only:
        shared = {k: options[k] for k in ("db", "decode_responses") if k in options}
        memory = memory_pool(**shared)
        if memory is None:
            _without_store(settings, gate)
    return pool_class(
        gate,
        memory,
        connection_class=kind,
        max_connections=settings.max_connections,
        **_understood(kind, options),
    )


def _sentinel(settings: Settings, gate: Gate, topology: Topology) -> GuardedRedis:
    plain, managed = (
        (TLSConnection, SentinelTLSConnection)
        if topology.tls
        else (TCPConnection, SentinelTCPConnection)
    )
    options = _connection_options(settings, topology.options)
    # Transport options (certificates, keep-alive) hold for the sentinels too, credentials do not.
    inherited = {k: v for k, v in options.items() if k.startswith(("ssl", "socket_", "retry"))}
    theirs = {**inherited, **topology.sentinel_options, **decided(settings.timeout), "protocol": 2}
    kind = bind(plain, gate)
    pools = [
        GuardedPool(
            gate,
            connection_class=kind,
            max_connections=settings.max_connections,
            host=host,
            port=port,
            **_understood(kind, theirs),
        )
        for host, port in topology.hosts
    ]
    sentinels = Sentinels(
        gate,
        topology.service,
        pools,
        trust_seconds=settings.sentinel_trust_seconds,
        interval=SENTINEL_INTERVAL,
        background=settings.health_check_interval > 0,
    )
    pool_class = type("SentinelPool", (SentinelPool,), {"sentinels": sentinels})
    pool = _pool(settings, gate, bind(managed, gate, sentinels=sentinels), options, pool_class)
    sentinels.on_change = cast("SentinelPool", pool).leave
    _follow(options, pool.retire_all)
    return cast("GuardedRedis", bind(GuardedRedis, gate, app_gate=gate)(connection_pool=pool))


def _cluster(settings: Settings, gate: Gate, topology: Topology) -> GuardedCluster:
    if gate.in_memory:
        gate.in_memory = False
        logger.info("No in-memory store stands in for a cluster, not even in development")
    options = _connection_options(settings, topology.options)
    # redis-py would have a provider's new credentials sent to those nodes alone that it met last.
    named = set(inspect.signature(redis.RedisCluster.__init__).parameters)
    named -= {"retry", "credential_provider"}
    # redis-py calls it after the handshake of each connection to a node.
    named.add("redis_connect_func")
    client_wide = {name: options[name] for name in named & set(options)}
    if str(options.get("protocol")) != "3":
        # redis-py 7 refuses to be told so where there can be none.
        client_wide.pop("maint_notifications_config", None)
    for name in client_wide:
        if name != "maint_notifications_config":  # the connections' own, too
            del options[name]
    kind = bind(NodeTLSConnection if topology.tls else NodeTCPConnection, gate)
    node_options = {
        "connection_class": kind,
        "max_connections": settings.max_connections,
        **_understood(kind, options),
    }
    pool_class = type("NodePool", (NodePool,), {"bound_gate": gate, "options": node_options})
    read_by_client = ("decode_responses", "encoding", "encoding_errors", "protocol")
    cluster = GuardedCluster(
        gate,
        topology.hosts,
        pool_class,
        # Whether a shard without slots is an outage is the servers' decision.
        **{"require_full_coverage": False, **client_wide},
        **{name: options[name] for name in read_by_client if name in options},
    )
    _follow(options, cluster.retire_all)
    return cluster


def _follow(options: dict[str, Any], retire_all: Callable[[], None]) -> None:
    """Have connections made anew whenever a provider that streams has other credentials."""
    provider = options.get("credential_provider")
    streaming = getattr(redis.credentials, "StreamingCredentialProvider", None)  # redis-py 5.3
    if streaming is not None and isinstance(provider, streaming):
        provider.on_next(lambda token: retire_all())
        provider.on_error(
            lambda error: logger.warning(
                "The credential provider has no new credentials: %s", type(error).__name__
            )
        )


def _parsed(url: str, parse: Callable[[str], Any]) -> Any:
    """Return what a parser reads in the URL.

    :raises ConfigurationError: without a secret.
    """
    if split_url(url).scheme == "memory":
        return {}
    try:
        return parse(url)
    except ValueError as exc:
        hint = str(exc) if parse is parse_topology else "an option in the URL has a bad value"
        raise ConfigurationError("REDIS_URL", redact_url(url), hint) from None


def _without_store(settings: Settings, gate: Gate) -> None:
    remedy = "pip install 'flask-redis-guard[dev]'"
    if gate.memory_only:
        raise ConfigurationError("REDIS_URL", settings.redis_url, f"memory:// needs {remedy}")
    gate.in_memory = False  # so even development fails closed
    logger.warning("There is no in-memory store to fall back to in development: %s", remedy)


def _connection_options(settings: Settings, from_url: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of a connection: from the URL, the options, and the guard.

    :raises ConfigurationError: for an option that the guard decides.
    """
    given = {name: value for name, value in from_url.items() if name != "connection_class"}
    given.update(settings.client_options or {})
    for name in given:
        if name in _DECIDED:
            raise ConfigurationError(
                "REDIS_GUARD_CLIENT_OPTIONS", name, f"options without it; use {_DECIDED[name]}"
            )
    protocol = str(given.get("protocol", 2))
    if protocol not in ("2", "3"):
        raise ConfigurationError("protocol", HIDDEN, "2 or 3")
    if protocol == "3" and not knows_pushes():
        what = "2: this hiredis or redis-py takes what RESP3 pushes for replies; update both"
        raise ConfigurationError("protocol", protocol, what)
    # Protocol 2 on purpose: no push messages among the replies, one message less to connect.
    return {"protocol": 2, **given, **decided(settings.timeout)}


def _understood(kind: type[Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that this version of redis-py knows.

    :raises ConfigurationError: for one that only a user can have asked for.
    """
    known: set[str] = set()
    for base in kind.__mro__:
        if issubclass(base, AbstractConnection):
            known.update(inspect.signature(base.__init__).parameters)
    if "ssl_check_hostname" in known and options.get("ssl_cert_reqs", 2) not in (0, "none", None):
        # Without it any certificate of any host will do; redis-py before 6 does not insist.
        options = {"ssl_check_hostname": True, **options}
    optional = {"maint_notifications_config", "protocol"}
    for name in options:
        if name not in known and name not in optional:
            # Not the name: it may be a secret that lost its place in the URL.
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigurationError(
                "an option in REDIS_URL or REDIS_GUARD_CLIENT_OPTIONS",
                HIDDEN,
                f"options of redis-py's connection classes{hint}",
            )
    return {name: value for name, value in options.items() if name in known}
