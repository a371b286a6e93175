"""The client for a cluster: a ``redis.RedisCluster`` that is made without I/O.

redis-py's client repeats what failed and refreshes its map of the cluster inside its loops; here
the gate stands above them, nothing is sent twice, each primary has a breaker, and a server that
hangs cannot keep the map from being refreshed by another one.
"""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import redis
from redis import exceptions as redis_errors
from redis._parsers import CommandsParser, Encoder
from redis.backoff import NoBackoff
from redis.client import NEVER_DECODE
from redis.cluster import (
    ClusterPipeline,
    ClusterPubSub,
    NodesManager,
    get_node_name,
)
from redis.crc import key_slot
from redis.retry import Retry

from flask_redis_guard.client.channel import Channel
from flask_redis_guard.client.gate import Gate
from flask_redis_guard.client.operation import DeadlineLock, Operation, current
from flask_redis_guard.client.redis import (
    GuardedMonitor,
    GuardedPubSub,
    GuardedScript,
    operation_name,
)
from flask_redis_guard.client.replies import read_reply
from flask_redis_guard.client.topology.map import REFRESH_SECONDS, ClusterMap
from flask_redis_guard.client.topology.nodes import NodePool, note
from flask_redis_guard.client.topology.shards import ClusterBreaker
from flask_redis_guard.client.transport.pool import no_retries
from flask_redis_guard.core.breaker import CircuitBreaker, CircuitState

#: Tries at finding a key for each primary; each has one chance in the number of primaries.
_TRIES = 10_000
#: The replies of a node to what it has not carried out, but which another one may.
_NOT_CARRIED_OUT = (redis_errors.MovedError, redis_errors.AskError, redis_errors.TryAgainError)
#: How often a command is redirected; redis-py's own number.
_REDIRECTIONS = 16

#: Where the keys of common commands are, so that a first one does not wait for all of ``COMMAND``.
_ONE_KEY = frozenset(
    {
        *("decr", "expire", "get", "getdel", "getex", "hdel", "hget", "hgetall", "hincrby"),
        *("hmget", "hset", "incr", "incrby", "incrbyfloat", "llen", "lpop", "lpush", "lrange"),
        *("pexpire", "pttl", "rpop", "rpush", "sadd", "scard", "set", "setex", "sismember"),
        *("smembers", "srem", "ttl", "type", "xadd", "zadd", "zcard", "zrange", "zrem", "zscore"),
    }
)
_ALL_KEYS = frozenset({"del", "exists", "mget", "touch", "unlink", "watch"})


def _known_commands() -> dict[str, Any]:
    """Return what ``COMMAND`` would say of common commands."""
    return {
        name: {
            "name": name,
            "arity": -2,
            "flags": [],
            "first_key_pos": 1,
            "last_key_pos": 1 if name in _ONE_KEY else -1,
            "step_count": 1,
        }
        for name in _ONE_KEY | _ALL_KEYS
    }


class KnownCommands(CommandsParser):
    """Where the keys of commands are: common ones are known, for others nodes are asked first.

    redis-py asks as well, but then looks for the key of the first command of two words, such as
    ``XGROUP CREATE``, in the wrong place.
    """

    def get_keys(self, redis_conn: Any, *args: Any) -> Any:
        """Return the keys of a command."""
        words = str(args[0]).lower().split()
        if words and words[0] not in self.commands and args[0].lower() not in self.commands:
            self.initialize(redis_conn)
        return super().get_keys(redis_conn, *args)


class GuardedCluster(redis.RedisCluster):
    """A ``redis.RedisCluster`` behind a circuit breaker for each primary, made without I/O.

    :param gate: leads every operation through the breaker, a :class:`ClusterBreaker`.
    :param seeds: host and port of the nodes that are asked for the others.
    :param pool_class: a subclass of :class:`NodePool` that belongs to the gate.
    :param options: for ``redis.RedisCluster``.
    """

    def __init__(
        self,
        gate: Gate,
        seeds: Sequence[tuple[str, int]],
        pool_class: type[NodePool],
        **options: Any,
    ) -> None:
        self.gate = gate
        self.channel = ClusterChannel(self)
        self._seeds = tuple(seeds)
        self._pool_class = pool_class
        self._options = options
        self._making = DeadlineLock(gate)
        self._targets: dict[CircuitBreaker, Target] = {}
        self._make()

    def _make(self) -> None:
        """Make all of it, anew in a new process: no lock and no socket of the old one is used."""
        self._made_in: object = None
        self._pools: dict[str, NodePool] = {}
        host, port = self._seeds[0]
        self._pool_class.making = True
        try:
            super().__init__(
                # Given a URL, redis-py makes its pools of the class given.
                url=f"redis://{f'[{host}]' if ':' in host else host}:{port}",
                connection_pool_class=self._pool_of,
                retry=Retry(NoBackoff(), 0),
                **self._options,
            )
        finally:
            self._pool_class.making = False
        self.commands_parser = KnownCommands(self)
        self.cluster_error_retry_attempts = 0  # what redis-py before 6 goes by
        self.map = ClusterMap(self.gate, self._nodes, self._seeds)
        self._made_in = _here()

    def _pool_of(self, **options: Any) -> NodePool:
        """Return the one pool of a node: what asks for the map has begun to connect there."""
        name = get_node_name(options["host"], options["port"])
        pool = self._pools.get(name)
        return pool or self._pools.setdefault(name, self._pool_class(**options))

    # A caller who looks at the nodes wants those of the cluster; redis-py's constructor sets them.

    @property
    def nodes_manager(self) -> NodesManager:
        """redis-py's map of the cluster, once a node was asked for it."""
        if self._made_in is not None:
            self._ask_once()
        return self._nodes

    @nodes_manager.setter
    def nodes_manager(self, nodes: NodesManager) -> None:
        self._nodes = nodes

    def _ask_once(self) -> None:
        """Ask for the map, as one operation, unless this process has done so."""
        if self._made_in != _here() or not self.map.known:
            self.gate.run("CLUSTER SLOTS", self.ready)

    def ready(self) -> None:
        """Be right in this process, and have a map; called inside operations."""
        if self._made_in != _here():
            with self._making.held():
                if self._made_in != _here():
                    self._make()
        operation = current(self.gate)
        if operation is None:
            raise RuntimeError("a cluster is asked inside operations only")
        self.map.ensure(operation)

    def pool_for(self, slot: int) -> NodePool:
        """Return the pool of the primary that serves a slot.

        :raises redis.RedisError: if the map knows none.
        """
        node = self._nodes.get_node_from_slot(slot)
        return cast("NodePool", self.get_redis_connection(node).connection_pool)

    def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """Send one command, as one operation."""
        if self._made_in is None and args == ("COMMAND",):
            return _known_commands()  # its table is made; what is not in it will be asked for
        call = super().execute_command

        def send() -> Any:
            self.ready()
            return self._patiently(call, *args, **kwargs)

        return self.gate.run(operation_name(args), send)

    def _patiently(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call what tries again while the keys of a slot are on two nodes.

        :raises redis.exceptions.TryAgainError: where that lasts. redis-py says that it was
            redirected for ever, which would be an outage; but each time a node has answered.
        """
        try:
            return call(*args, **kwargs)
        except redis_errors.ClusterError as exc:
            operation = current(self.gate)
            if type(exc) is redis_errors.ClusterError and operation and operation.split:
                raise operation.split from exc
            raise

    def get_encoder(self) -> Encoder:
        """Return the encoder, without asking the cluster."""
        return self.encoder

    def set_retry(self, retry: Any) -> None:
        """Refuse: one operation is one try.

        :raises ConfigurationError: always.
        """
        raise no_retries(retry)

    def register_script(self, script: Any) -> GuardedScript:
        """Return a callable for a Lua script."""
        return GuardedScript(self, script)

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> GuardedClusterPipeline:
        """Return a pipeline whose ``execute`` is one operation."""
        if shard_hint:
            raise redis_errors.RedisClusterException("shard_hint is deprecated in cluster mode")
        given = inspect.signature(ClusterPipeline.__init__).parameters
        if transaction and "transaction" not in given:  # redis-py before 6
            raise redis_errors.RedisClusterException("transaction is deprecated in cluster mode")
        self._ask_once()
        own: dict[str, Any] = vars(self)  # its arguments are not the same in any two versions
        values = {name: own[key] for name in given for key in (f"_{name}", name) if key in own}
        if "retry" in given:  # then the number of tries is deprecated
            values.pop("cluster_error_retry_attempts", None)
        values.update(
            nodes_manager=self._nodes,
            startup_nodes=self._nodes.startup_nodes,
            transaction=transaction,
            retry=Redirections(self.map) if transaction else self.retry,
        )
        return GuardedClusterPipeline(self, **{n: v for n, v in values.items() if n in given})

    def pubsub(self, node: Any = None, host: Any = None, port: Any = None, **kwargs: Any) -> Any:
        """Return a subscriber; subscribing is an operation, waiting for messages is not."""
        return GuardedClusterPubSub(self, node=node, host=host, port=port, **kwargs)

    def monitor(self, target_node: Any = None) -> GuardedMonitor:
        """Return a listener to all commands of one node."""
        node = target_node or self.get_default_node()
        pool: Any = self.get_redis_connection(node).connection_pool
        return GuardedMonitor(pool)

    def retire_all(self) -> None:
        """Have connections to all nodes made anew."""
        for pool in list(self._pools.values()):
            pool.retire_all()

    def close(self) -> None:
        """Close all connections, if there are any."""
        if self._made_in is not None:
            self._nodes.close()
            for pool in list(self._pools.values()):
                pool.disconnect()

    def __del__(self) -> None:
        """Leave what it holds to the garbage collector: it may run in the middle of anything."""

    # -- for the background check ----------------------------------------------------------------

    def probe_targets(self) -> list[Target]:
        """Return what the background check asks: each primary, and the map where that failed."""
        breaker = cast("ClusterBreaker", self.gate.breaker)
        breakers = dict.fromkeys(breaker.primaries.values())
        if breaker.whole.state is not CircuitState.CLOSED or not breakers:
            breakers[breaker.whole] = None
        self._targets = {each: self._targets.get(each) or Target(self, each) for each in breakers}
        return list(self._targets.values())

    def node_of(self, breaker: CircuitBreaker) -> Any:
        """Return the node that a breaker stands before now; ``None`` if it is no more."""
        primaries = cast("ClusterBreaker", self.gate.breaker).primaries
        for name, each in primaries.items():
            if each is breaker:
                return self._nodes.get_node(node_name=name)
        return None


class ClusterChannel:
    """Leads packed commands to the primary of their keys, where callers share round trips.

    What a node does not carry out, since the slot is on its way or the map is old, goes on by way
    of redis-py, which follows redirections.

    :param cluster: the client.
    """

    def __init__(self, cluster: GuardedCluster) -> None:
        self._cluster = cluster
        #: Digests of the scripts that one of the nodes has been given.
        self.known: set[bytes] = set()

    def ask(self, operation: Operation, packed: bytes) -> Any:
        """Send one command, and return its reply in bytes; an error as an exception.

        :param operation: the caller's.
        :param packed: a call of a script, as it is sent; its keys are in one slot.
        :raises redis.RedisError: if there is none.
        """
        cluster = self._cluster
        with operation:
            cluster.ready()
            pool = cluster.pool_for(key_slot(_first_key(packed)))
        reply = None
        if pool.channel is not None:
            reply = self._ask_node(pool, pool.channel, operation, packed)
        if pool.channel is None or isinstance(reply, _NOT_CARRIED_OUT):
            with operation:
                return self._by_redis_py(packed)
        if isinstance(reply, redis_errors.ClusterDownError):
            raise redis_errors.ConnectionError(f"CLUSTERDOWN {reply}") from reply
        return reply

    def _ask_node(
        self, pool: NodePool, channel: Channel, operation: Operation, packed: bytes
    ) -> Any:
        pool.visit(operation)
        try:
            reply = channel.ask(operation, packed)
        except Exception as exc:
            self._cluster.map.stale = True
            note(operation, pool.node, exc)
            raise
        error = reply if isinstance(reply, Exception) else None
        if isinstance(error, redis_errors.ClusterDownError):
            self._cluster.map.stale = True
        note(operation, pool.node, error)
        return reply

    def _by_redis_py(self, packed: bytes) -> Any:
        command, code, keys, *words = read_reply(packed, 0)[0]
        try:
            return self._cluster.execute_command(
                command.decode(), code, int(keys), *words, **{NEVER_DECODE: True}
            )
        except redis_errors.NoScriptError as unknown:
            return unknown


def _first_key(packed: bytes) -> bytes:
    """Return the first key of a packed call of a script."""
    *_, length, key = packed.split(b"\r\n", 9)[:9]
    if length == b"$%d" % len(key):
        return key
    found: bytes = read_reply(packed, 0)[0][3]  # there is a line's end in it, or in the script
    return found


def _here() -> object:
    """Return the process, and whether before or after gevent's patch."""
    return os.getpid(), threading.RLock


class Target:
    """One primary, or the cluster as a whole, as the background check asks it.

    :param cluster: the client.
    :param breaker: the primary's breaker.
    """

    def __init__(self, cluster: GuardedCluster, breaker: CircuitBreaker) -> None:
        self._cluster = cluster
        self.breaker = breaker
        self._key: tuple[str, str, str] | None = None  # the node, a prefix, and a key there

    def run(self, check: Callable[[], object]) -> None:
        """Make one check, as one operation that is a probe."""
        self._cluster.gate.run("PROBE", check, probe=True)

    def prepare(self) -> None:
        """Refresh the map, which may name another primary by now."""
        if self._cluster.map.age > REFRESH_SECONDS:
            self._cluster.map.refresh()

    def write(self, key: str, seconds: int) -> None:
        """Write a key that the primary serves."""
        node = self._cluster.node_of(self.breaker)
        if node is None:
            self._cluster.ready()
        else:
            self._cluster.set(self._key_on(node.name, key), "1", ex=seconds)

    def ping(self) -> None:
        """Ask without writing."""
        node = self._cluster.node_of(self.breaker)
        if node is None:
            self._cluster.ready()
        else:
            self._cluster.ping(target_nodes=node)

    def _key_on(self, node: str, prefix: str) -> str:
        if self._key is not None and self._key[:2] == (node, prefix):
            kept = self._key[2]
            if self._cluster.get_node_from_key(kept).name == node:
                return kept
        for number in range(_TRIES):
            key = f"{prefix}{{{number}}}"
            if self._cluster.get_node_from_key(key).name == node:
                self._key = node, prefix, key
                return key
        raise redis_errors.SlotNotCoveredError(f"no key for {node}")


# -- pipelines and subscribers -------------------------------------------------------------------


class Redirections(Retry):
    """Follow a transaction's slot to where it has moved, and repeat nothing else.

    :param cluster_map: the client's map, which is refreshed before each next try.
    """

    def __init__(self, cluster_map: ClusterMap) -> None:
        super().__init__(NoBackoff(), 0)
        self._map = cluster_map

    def call_with_retry(
        self, do: Callable[[], Any], fail: Callable[..., Any], *_: Any, **options: Any
    ) -> Any:
        counted = bool(options.get("with_failure_count"))
        for count in range(1, _REDIRECTIONS):
            try:
                return do()
            except (redis_errors.MovedError, redis_errors.AskError) as exc:
                fail(exc, count) if counted else fail(exc)
                if isinstance(exc, redis_errors.MovedError):
                    self._map.refresh()
        return do()


class GuardedClusterPipeline(ClusterPipeline):
    """A pipeline on a cluster: ``execute`` is one operation, and so is a command sent at once.

    :param cluster: the client.
    :param options: for redis-py's pipeline.
    """

    def __init__(self, cluster: GuardedCluster, **options: Any) -> None:
        self.gate = cluster.gate
        self._cluster = cluster
        super().__init__(**options)
        self.parent_execute_command = self.redirect

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send all queued commands, as one operation."""
        call: Callable[[bool], list[Any]] = super().execute

        def send() -> list[Any]:
            self._cluster.ready()
            replies = call(raise_on_error)
            operation = current(self.gate)
            if operation is not None and operation.broken is not None:
                raise operation.broken  # a part of it may be lost, whatever the caller ignores
            return replies

        return self.gate.run("PIPELINE", send)

    def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """Queue a command; what a transaction sends at once, such as WATCH, is one operation."""
        call = super().execute_command
        strategy: Any = self._execution_strategy if hasattr(self, "_execution_strategy") else None
        at_once = args[0] in ("WATCH", "UNWATCH") or getattr(strategy, "_watching", False)
        if not at_once or getattr(strategy, "_explicit_transaction", True):
            return call(*args, **kwargs)

        def send() -> Any:
            self._cluster.ready()
            return call(*args, **kwargs)

        return self.gate.run(operation_name(args), send)

    def redirect(self, *args: Any, **kwargs: Any) -> Any:
        """Send one command again, to the node that it was redirected to.

        :raises redis.RedisError: if it came back because a connection broke: it may have been
            carried out.
        """
        operation = current(self.gate)
        if operation is not None and operation.broken is not None:
            self._cluster.map.stale = True
            raise operation.broken
        return self._cluster.execute_command(*args, **kwargs)

    def reset(self) -> None:  # type: ignore[override]
        """Forget what is queued and give the connection back; never waits for a dead server."""
        strategy: Any = getattr(self, "_execution_strategy", None)
        connection = getattr(strategy, "_transaction_connection", None)
        if connection is not None and strategy._watching:
            connection.disconnect()  # takes the watches along without a round trip
            strategy._watching = False
        super().reset()


class GuardedClusterPubSub(GuardedPubSub, ClusterPubSub):
    """A subscriber on a cluster whose commands and reconnects pass the gate."""

    @property
    def gate(self) -> Gate:
        """The client's gate; there is no pool before the first channel tells the node."""
        gate: Gate = self.cluster.gate
        return gate
