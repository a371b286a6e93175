"""The client for a cluster: a ``redis.RedisCluster`` that connects on first use.

redis-py's client repeats what failed and refreshes its map of the cluster inside its loops; here
the gate stands above them, nothing is sent twice, and a server that hangs cannot keep the map
from being refreshed by another one.
"""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import redis
from redis._parsers import Encoder
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, ClusterPipeline, ClusterPubSub
from redis.retry import Retry

from flask_redis_guard.client.gate import Gate
from flask_redis_guard.client.operation import DeadlineLock, current
from flask_redis_guard.client.redis import (
    GuardedMonitor,
    GuardedPubSub,
    GuardedScript,
    operation_name,
)
from flask_redis_guard.client.topology.nodes import NodePool, NodesMap, patiently

#: Tries at finding a key for each primary; each has one chance in the number of primaries.
_TRIES = 10_000

#: What a cluster client has only after it has asked the cluster: what the constructors name (and
#: some words more). Not everything that is missing: ``hasattr`` for what other libraries look for,
#: such as ``connection_pool``, must neither ask the cluster nor fail with it.
_BUILT = frozenset(
    name
    for base in redis.RedisCluster.__mro__
    if inspect.isfunction(base.__dict__.get("__init__"))
    for name in inspect.unwrap(base.__dict__["__init__"]).__code__.co_names
)


class GuardedCluster(redis.RedisCluster):
    """A ``redis.RedisCluster`` behind a circuit breaker, made without I/O.

    :param gate: leads every operation through the breaker.
    :param seeds: host and port of the nodes that are asked for the others.
    :param pool_class: a subclass of :class:`NodePool` that belongs to the gate.
    :param options: for ``redis.RedisCluster``.
    """

    nodes_manager: NodesMap

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
        self._building = DeadlineLock(gate)
        self._built_in: object = None  # the process, and whether before or after gevent's patch
        self._under_way: object = None
        self._probes: tuple[frozenset[str], list[str]] | None = None

    def __getattr__(self, name: str) -> Any:
        # Called only for what is missing: with the attributes of a built client, build it.
        if name in _BUILT:
            self._ask_once()
        if name not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self.__dict__[name]

    def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """Send one command, as one operation."""
        call = super().execute_command

        def send() -> Any:
            self.ready()
            return patiently(self.gate, call, *args, **kwargs)

        return self.gate.run(operation_name(args), send)

    def _ask_once(self) -> None:
        """Ask the cluster for its nodes, as one operation, unless this process has done so."""
        if self._built_in != (os.getpid(), threading.RLock):
            self.gate.run("CLUSTER SLOTS", self.ready)

    def ready(self) -> None:
        """Ask the cluster for its nodes, unless that is done; again where the map is in doubt."""
        here = (os.getpid(), threading.RLock)
        if self._built_in == here:
            if self.nodes_manager.stale:
                self.nodes_manager.initialize()
            return
        with self._building.held():
            # While it builds, the same thread comes here again, and finds the lock its own.
            if here not in (self._built_in, self._under_way):
                self._under_way = here
                try:
                    self._build()
                    self._built_in = here
                finally:
                    self._under_way = None

    def _build(self) -> None:
        """Make all of it, anew in a new process: no lock and no socket of the old one is used."""
        operation = current(self.gate)
        if operation is None:
            raise RuntimeError("a cluster is asked inside operations only")
        host, port = self._seeds[0]
        with operation.sharing(len(self._seeds)):
            super().__init__(
                startup_nodes=[ClusterNode(*seed) for seed in self._seeds],
                # Given a URL, redis-py makes its pools of the class given.
                url=f"redis://{f'[{host}]' if ':' in host else host}:{port}",
                connection_pool_class=self._pool_class,
                retry=Retry(NoBackoff(), 0),
                **self._options,
            )
        self.cluster_error_retry_attempts = 0  # what redis-py before 6 goes by
        NodesMap.take_over(self.nodes_manager, self.gate, self._seeds)

    def get_encoder(self) -> Encoder:
        """Return the encoder, without asking the cluster."""
        names = ("encoding", "encoding_errors", "decode_responses")
        defaults = ("utf-8", "strict", False)
        return Encoder(*map(self._options.get, names, defaults))

    def register_script(self, script: Any) -> GuardedScript:
        """Return a callable for a Lua script."""
        return GuardedScript(self, script)

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> GuardedClusterPipeline:
        """Return a pipeline whose ``execute`` is one operation."""
        self._ask_once()
        pipeline: Any = super().pipeline(transaction, shard_hint)
        # Its arguments are not the same in any two versions of redis-py.
        pipeline.__class__ = GuardedClusterPipeline
        pipeline.gate = self.gate
        pipeline.parent_execute_command = pipeline.redirect
        return cast("GuardedClusterPipeline", pipeline)

    def pubsub(self, node: Any = None, host: Any = None, port: Any = None, **kwargs: Any) -> Any:
        """Return a subscriber; subscribing is an operation, waiting for messages is not."""
        self._ask_once()
        return GuardedClusterPubSub(self, node=node, host=host, port=port, **kwargs)

    def monitor(self, target_node: Any = None) -> GuardedMonitor:
        """Return a listener to all commands of one node."""
        self._ask_once()
        node = target_node or self.get_default_node()
        pool: Any = self.get_redis_connection(node).connection_pool
        return GuardedMonitor(pool)

    def close(self) -> None:
        """Close all connections, if there are any."""
        if "nodes_manager" in self.__dict__:
            super().close()

    def __del__(self) -> None:
        """Leave what it holds to the garbage collector: it may run in the middle of anything."""

    def probe_keys(self, prefix: str) -> list[str]:
        """Return keys such that each primary has one of them; called inside an operation.

        :param prefix: what they begin with.
        """
        self.ready()
        primaries = frozenset(node.name for node in self.get_primaries())
        if self._probes is None or self._probes[0] != primaries:
            found: dict[str, str] = {}
            for number in range(_TRIES):
                key = f"{prefix}{{{number}}}"
                found.setdefault(self.get_node_from_key(key).name, key)
                if primaries <= set(found):
                    break
            self._probes = (primaries, list(found.values()))
        return self._probes[1]


class GuardedClusterPipeline(ClusterPipeline):
    """A pipeline on a cluster: ``execute`` is one operation."""

    gate: Gate
    nodes_manager: NodesMap

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send all queued commands, as one operation."""
        call: Callable[[bool], list[Any]] = super().execute

        def send() -> list[Any]:
            if self.nodes_manager.stale:
                self.nodes_manager.initialize()
            replies = call(raise_on_error)
            operation = current(self.gate)
            if operation is not None and operation.broken is not None:
                raise operation.broken  # a part of it may be lost, whatever the caller ignores
            return replies

        return self.gate.run("PIPELINE", send)

    def redirect(self, *args: Any, **kwargs: Any) -> Any:
        """Send one command again, to the node that it was redirected to.

        :raises redis.RedisError: if it came back because a connection broke: it may have been
            carried out.
        """
        operation = current(self.gate)
        if operation is not None and operation.broken is not None:
            self.nodes_manager.stale = True
            raise operation.broken
        call = redis.RedisCluster.execute_command
        return patiently(self.gate, call, self, *args, **kwargs)

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
