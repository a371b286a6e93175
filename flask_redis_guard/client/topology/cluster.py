"""The client for a cluster: a ``redis.RedisCluster`` that is made without I/O.

redis-py's client repeats what failed and refreshes its map of the cluster inside its loops; here
the gate stands above them, nothing is sent twice, each primary has a breaker, and a server that
hangs cannot keep the map from being refreshed by another one.
"""

from __future__ import annotations

import inspect
import logging
import os
import random
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import redis
from redis import exceptions as redis_errors
from redis._parsers import Encoder
from redis.backoff import NoBackoff
from redis.cluster import (
    ClusterNode,
    ClusterPipeline,
    ClusterPubSub,
    NodesManager,
    get_node_name,
)
from redis.retry import Retry

from flask_redis_guard.client.gate import Gate
from flask_redis_guard.client.operation import DeadlineLock, Operation, current
from flask_redis_guard.client.outcomes import judge
from flask_redis_guard.client.redis import (
    GuardedMonitor,
    GuardedPubSub,
    GuardedScript,
    operation_name,
)
from flask_redis_guard.client.topology.shards import ClusterBreaker, Passage
from flask_redis_guard.client.transport.connections import (
    GuardedConnection,
    TCPConnection,
    TLSConnection,
)
from flask_redis_guard.client.transport.pool import GuardedPool, no_retries
from flask_redis_guard.client.transport.sockets import is_ready
from flask_redis_guard.core.breaker import CircuitBreaker, CircuitState, Outcome

logger = logging.getLogger("flask_redis_guard")

#: Tries at finding a key for each primary; each has one chance in the number of primaries.
_TRIES = 10_000
#: Nodes that are connected to at once when the map is asked for.
_RACERS = 4
#: Seconds between two refreshes of a map that is only in doubt.
REFRESH_SECONDS = 0.5
#: The same where something failed: less than it takes a node that hangs to do so again.
_AGAIN_SECONDS = 0.1
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


# -- connections ---------------------------------------------------------------------------------


class NodeConnection(GuardedConnection):
    """A connection to one node, which tells its operation how that node does.

    ``CLUSTERDOWN`` is raised as a lost connection: redis-py sleeps a quarter of a second for the
    reply, whatever the deadline, and then refreshes its map, as it does for the loss.
    """

    host: str
    port: int

    def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().send_packed_command(*args, **kwargs)
        except Exception as exc:
            note(self.operation(), get_node_name(self.host, self.port), exc)
            raise

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        operation, node = self.operation(), get_node_name(self.host, self.port)
        try:
            response = super().read_response(*args, **kwargs)
        except redis_errors.ClusterDownError as exc:
            error = redis_errors.ConnectionError(f"CLUSTERDOWN {exc}")
            self.disconnect()
            note(operation, node, error)
            self._tell(error)
            raise error from exc
        except Exception as exc:
            if operation is not None and isinstance(exc, redis_errors.TryAgainError):
                operation.split = exc
            note(operation, node, exc)
            raise
        note(operation, node, None)
        return response


def note(operation: Operation | None, node: str, error: BaseException | None) -> None:
    """Have an operation remember how one of its nodes did."""
    if operation is not None and isinstance(operation.permit, Passage):
        if isinstance(error, redis_errors.MovedError):
            cast("ClusterBreaker", operation.gate.breaker).moved = True
        outcome = Outcome.SUCCESS if error is None else judge(error).outcome
        if outcome is not Outcome.NEUTRAL:
            operation.permit.note(node, outcome)


class NodeTCPConnection(NodeConnection, TCPConnection):
    """A guarded connection to a cluster's node over TCP."""


class NodeTLSConnection(NodeConnection, TLSConnection):
    """A guarded connection to a cluster's node over TLS."""


class _Unasked(redis.Connection):
    """Answers for the first seed, while the client is made, that all slots are there."""

    def connect(self) -> None:
        """Do nothing: nothing is sent."""

    def send_command(self, *args: Any, **kwargs: Any) -> None:
        self._asked = args

    def read_response(self, *_: Any, **__: Any) -> Any:
        if self._asked == ("INFO",):  # redis-py before 6
            return b"cluster_enabled:1"
        if self._asked != ("CLUSTER SLOTS",):
            raise RuntimeError(f"{self._asked[0]} is not asked while a client is made")
        return [[0, 16_383, [self.host, self.port, "unasked"]]]


class NodePool(GuardedPool):
    """The pool of one node; redis-py's cluster client makes it, and drops options on the way."""

    bound_gate: Gate  # these two are set on the subclass that each client makes for itself
    options: dict[str, Any]
    #: Whether the client is being made: then nothing is asked.
    making = False

    def __init__(self, **given: Any) -> None:
        passed = ("host", "port", "redis_connect_func", "himport_registry")
        options = {name: given[name] for name in passed if given.get(name) is not None}
        self.host, self.port = options["host"], options["port"]
        self.node = get_node_name(self.host, self.port)
        super().__init__(self.bound_gate, **{**self.options, **options})

    def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        """Take a connection out of the pool, ready to use."""
        if self.making:
            kwargs = self.connection_kwargs
            return _Unasked(host=kwargs["host"], port=kwargs["port"])
        return super().get_connection(command_name, *keys, **options)

    # redis-py 7 and newer call these after each lost connection to the node. Idle connections are
    # looked at when they are taken, and those in use are others'.

    def disconnect_free_connections(self, *_: Any, **__: Any) -> None:
        """Leave idle connections alone."""

    def update_active_connections_for_reconnect(self, *_: Any, **__: Any) -> None:
        """Leave connections in use alone."""

    def begin(self, operation: Operation) -> Any:
        """Take a connection that need not be connected; ``None`` if all are in use."""
        connection = self._free()
        if connection is not None:
            connection.holder = operation
            connection.renew()
        return connection

    def give_back(self, connection: Any) -> None:
        """Take back what :meth:`begin` gave; where it is still connecting, it goes on later."""
        connection.holder = None
        self.release(connection)

    def release(self, connection: Any) -> None:
        """Take a connection back."""
        if not isinstance(connection, _Unasked):
            super().release(connection)

    def take(self, operation: Operation) -> Any:
        """Take a connection, if the breaker of this node lets the operation pass.

        :raises CircuitOpen: if it does not; no socket is touched.
        """
        permit = operation.permit
        if isinstance(permit, Passage):
            breaker = cast("ClusterBreaker", self.gate.breaker)
            refusal = breaker.visit(permit, self.node)
            if refusal is not None:
                raise self.gate.refuse(operation.name, refusal)
        try:
            return super().take(operation)
        except Exception as exc:
            note(operation, self.node, exc)
            raise


# -- the map -------------------------------------------------------------------------------------


class _Told(redis.Redis):
    """Hands redis-py the map that a node has told."""

    def __init__(self, slots: Any) -> None:
        super().__init__(connection_pool=redis.ConnectionPool())
        self._slots = slots

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if args == ("INFO",):  # redis-py before 6
            return {"cluster_enabled": 1}
        if args != ("CLUSTER SLOTS",):
            raise RuntimeError(f"{args[0]} is not asked for a map")
        return self._slots


class Race:
    """Ask several nodes for the map: all are connected to at once, and the first answer counts.

    Where a node does not answer, the next one is asked as well. What was begun stays in the pools
    of the nodes, where the next operation goes on with it.

    :param operation: within whose time they are asked.
    :param pools: of the nodes, in the order in which they are asked.
    """

    def __init__(self, operation: Operation, pools: Iterator[NodePool]) -> None:
        self._operation = operation
        self._pools = pools
        self._running: dict[Any, NodePool] = {}
        self._asked: list[Any] = []
        self._next_at = 0.0
        self._failure: Exception = redis_errors.ConnectionError("no node is known")

    def run(self) -> tuple[NodePool, Any]:
        """Return who answered first, and its answer.

        :raises redis.RedisError: if nobody does in time.
        """
        try:
            self._next_at = self._operation.waited + self._operation.allowance / 3
            for _ in range(_RACERS):
                self._add()
            while self._running:
                found = self._step()
                if found is not None:
                    return found
                # What could be read, but not in time, does not end a wait for ever.
                is_over = self._operation.remaining() <= 0
                if self._running and (is_over or not self._operation.wait(self._is_due)):
                    raise redis_errors.TimeoutError("Timeout asking for the cluster's map")
            raise self._failure
        finally:
            for connection, pool in self._running.items():
                pool.give_back(connection)

    def _add(self) -> None:
        pool = next(self._pools, None)
        connection = None if pool is None else pool.begin(self._operation)
        if pool is not None and connection is not None:
            self._running[connection] = pool

    def _step(self) -> tuple[NodePool, Any] | None:
        ready = [each for each in list(self._running) if self._try(each, self._connect)]
        fresh = [each for each in ready if each not in self._asked and each in self._running]
        is_time = self._operation.waited >= self._next_at
        if fresh and (is_time or not any(each in self._running for each in self._asked)):
            self._asked.append(fresh[0])
            self._try(fresh[0], lambda c: c.send_command("CLUSTER", "SLOTS"))
        if is_time:
            self._next_at = self._operation.waited + self._operation.allowance / 3
            self._add()
        for connection in list(self._asked):
            if connection in self._running and is_ready(connection._sock, select.POLLIN, 0):
                slots = self._try(connection, lambda c: c.read_response())
                if slots:
                    return self._running[connection], slots
        return None

    def _try(self, connection: Any, call: Callable[[Any], Any]) -> Any:
        """Call something; a node that fails is out."""
        try:
            return call(connection)
        except (redis_errors.RedisError, OSError) as exc:
            self._failure = exc
            pool = self._running.pop(connection)
            connection.disconnect()
            pool.give_back(connection)
            self._add()
            return None

    def _connect(self, connection: Any) -> bool:
        """Go on connecting without waiting; true when it is connected."""
        if connection in self._asked:
            return True
        must_wait = connection.is_greeting and not connection.may_follow
        if must_wait and not is_ready(connection._sock, select.POLLIN, 0):
            return False
        operation = self._operation
        patience = operation.patience
        operation.patience = operation.waited - operation.allowance  # none is left
        try:
            connection.connect()
        except (redis_errors.TimeoutError, TimeoutError):
            return False
        finally:
            operation.patience = patience
        return True

    def _is_due(self, seconds: float) -> bool:
        """Wait until one of them can go on, or it is time to ask another one."""
        poller = select.poll()
        for connection in self._running:
            if connection._sock is not None:
                if connection in self._asked or connection.is_greeting:
                    poller.register(connection._sock, select.POLLIN)
            elif connection.awaited is not None:
                poller.register(*connection.awaited)
        pause = max(0.001, self._next_at - self._operation.waited)
        found = poller.poll(min(seconds, pause) * 1000)
        return bool(found) or pause <= seconds


class ClusterMap:
    """Who serves which slot: redis-py's map, refreshed inside operations by one caller at a time.

    :param gate: the client's gate.
    :param nodes: redis-py's map.
    :param seeds: host and port of the nodes to start from.
    """

    def __init__(self, gate: Gate, nodes: NodesManager, seeds: Sequence[tuple[str, int]]) -> None:
        self._gate = gate
        self._breaker = cast("ClusterBreaker", gate.breaker)
        self._nodes = nodes
        self._seeds = seeds
        self._refreshing = DeadlineLock(gate)
        self._initialize: Callable[[], None] = nodes.initialize
        # redis-py refreshes the map by this name, wherever it finds that it is wrong.
        nodes.initialize = self.refresh  # type: ignore[method-assign]
        #: Whether a node was asked at all in this process.
        self.known = False
        #: Whether it was wrong when it was last gone by, and could not be refreshed.
        self.stale = True
        self._asked_at = 0.0
        self._is_asking = False
        self._count = 0

    def ensure(self, operation: Operation) -> None:
        """Refresh it where that is due before an operation."""
        doubtful = self._breaker.moved or self._breaker.lets_users_probe
        due = self.age > REFRESH_SECONDS if doubtful else self.stale and self.age > _AGAIN_SECONDS
        if self.stale and self._is_asking:
            due = True  # what another operation asks for just now is waited for
        if not self.known or (due and not self._breaker.refusing):
            self.refresh()

    @property
    def age(self) -> float:
        """Seconds since nodes were last asked."""
        return time.monotonic() - self._asked_at

    def refresh(self, *_: Any, **__: Any) -> None:
        """Ask nodes for the map until one answers. If none does, a map that was known is kept.

        :raises redis.RedisError: if none does and there is no map yet.
        """
        operation = current(self._gate)
        if operation is None:
            self._gate.run("CLUSTER SLOTS", self.refresh)
            return
        permit = operation.permit
        if not isinstance(permit, Passage) or permit.asking or permit.refused:
            return
        self.stale = True  # until it is known better; a later operation will try again
        seen = self._count
        permit.ask(True)
        try:
            with self._refreshing.held():
                if self._count == seen:  # nobody else has, while we waited for our turn
                    self._ask(operation)
        except (redis_errors.RedisError, OSError) as exc:
            if not self.known:
                raise
            logger.debug("No node tells the cluster's map: %s", type(exc).__name__)
        finally:
            permit.ask(False)

    def _ask(self, operation: Operation) -> None:
        if operation.remaining() <= 0:
            raise redis_errors.TimeoutError("the operation's time is used up")
        self._asked_at = time.monotonic()
        self._is_asking = True
        try:
            with operation.sharing(1):
                if self.known:
                    operation.next_share()  # and the rest for what the operation is to do
                pool, slots = Race(operation, self._pools()).run()
            self._take_over(pool, slots)
        finally:
            self._is_asking = False

    def _take_over(self, pool: NodePool, slots: Any) -> None:
        node = ClusterNode(pool.host, pool.port, redis_connection=_Told(slots))
        self._nodes.startup_nodes = {node.name: node}
        self._initialize()
        self._count += 1
        self.known, self.stale = True, False
        slots_of: dict[str, list[int]] = {}
        for number, nodes in self._nodes.slots_cache.items():
            slots_of.setdefault(nodes[0].name, []).append(number)
        self._breaker.update(slots_of)
        self._breaker.moved = False
        self._choose_default()

    def _pools(self) -> Iterator[NodePool]:
        """Give the pools of the nodes to ask: those whose breaker is not closed come last."""
        known = [(node.host, node.port) for node in self._nodes.nodes_cache.values()]
        nodes = list(dict.fromkeys([*(known if self.known else ()), *self._seeds]))
        random.shuffle(nodes)  # not all processes the same one
        for host, port in sorted(nodes, key=lambda node: not self._serves(get_node_name(*node))):
            client = self._nodes.create_redis_node(host, port, **self._nodes.connection_kwargs)
            yield cast("NodePool", client.connection_pool)

    def _serves(self, node: str) -> bool:
        breaker = self._breaker.primaries.get(node)
        return breaker is None or breaker.state in (CircuitState.CLOSED, CircuitState.DISABLED)

    def _choose_default(self) -> None:
        """Have commands without a key sent to a primary that serves."""
        for node in self._nodes.get_nodes_by_server_type("primary"):
            if self._serves(node.name):
                self._nodes.default_node = node
                return


# -- the client ----------------------------------------------------------------------------------


class GuardedCluster(redis.RedisCluster):
    """A ``redis.RedisCluster`` behind a circuit breaker for each primary, made without I/O.

    :param gate: leads every operation through the breaker, a :class:`ClusterBreaker`.
    :param seeds: host and port of the nodes that are asked for the others.
    :param pool_class: a subclass of :class:`NodePool` that belongs to the gate.
    :param options: for ``redis.RedisCluster``.
    """

    channel: None = None

    def __init__(
        self,
        gate: Gate,
        seeds: Sequence[tuple[str, int]],
        pool_class: type[NodePool],
        **options: Any,
    ) -> None:
        self.gate = gate
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
