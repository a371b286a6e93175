"""The nodes of a cluster: their connections, their pools, and the map of who serves what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from redis import exceptions as redis_errors
from redis.cluster import ClusterNode, NodesManager

from flask_redis_guard.client.gate import Gate
from flask_redis_guard.client.operation import DeadlineLock, current
from flask_redis_guard.client.transport.connections import (
    GuardedConnection,
    TCPConnection,
    TLSConnection,
)
from flask_redis_guard.client.transport.pool import GuardedPool


class NodeConnection(GuardedConnection):
    """A connection to one node.

    ``CLUSTERDOWN`` is raised as a lost connection: redis-py sleeps a quarter of a second for the
    reply, whatever the deadline, and then refreshes its map, as it does for the loss.
    """

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().read_response(*args, **kwargs)
        except redis_errors.TryAgainError as exc:
            operation = self.operation()
            if operation is not None:
                operation.split = exc
            raise
        except redis_errors.ClusterDownError as exc:
            error = redis_errors.ConnectionError(f"CLUSTERDOWN {exc}")
            self.disconnect()
            self._tell(error)
            raise error from exc


class NodeTCPConnection(NodeConnection, TCPConnection):
    """A guarded connection to a cluster's node over TCP."""


class NodeTLSConnection(NodeConnection, TLSConnection):
    """A guarded connection to a cluster's node over TLS."""


class NodePool(GuardedPool):
    """The pool of one node; redis-py's cluster client makes it, and drops options on the way."""

    bound_gate: Gate  # these two are set on the subclass that each client makes for itself
    options: dict[str, Any]

    def __init__(self, **given: Any) -> None:
        passed = ("host", "port", "redis_connect_func", "himport_registry")
        options = {name: given[name] for name in passed if given.get(name) is not None}
        super().__init__(self.bound_gate, **{**self.options, **options})

    def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        """Take a connection; while the map is refreshed, each node gets a share of the time."""
        operation = current(self.gate)
        if operation is not None:
            operation.next_share()
        return super().get_connection(command_name, *keys, **options)


class _Listed(dict[str, Any]):
    """Nodes by name that can be looked through while another thread takes one out."""

    def values(self) -> Any:
        return list(super().values())


class NodesMap(NodesManager):
    """The map of slots to nodes, refreshed inside operations by one caller at a time."""

    gate: Gate
    seeds: Sequence[tuple[str, int]]
    refreshing: DeadlineLock
    #: Whether the map was wrong when it was last gone by, and could not be refreshed.
    stale = False
    refreshed = 0

    @classmethod
    def take_over(cls, manager: Any, gate: Gate, seeds: Sequence[tuple[str, int]]) -> None:
        """Make a manager that redis-py has made, by a name that it looks up itself, one of ours."""
        manager.__class__ = cls
        manager.gate, manager.seeds, manager.refreshing = gate, seeds, DeadlineLock(gate)

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Ask nodes for the map until one answers.

        :raises redis.exceptions.RedisClusterException: if none does before the deadline.
        """
        operation = current(self.gate)
        if operation is None:
            self.gate.run("CLUSTER SLOTS", lambda: self.initialize(*args, **kwargs))
            return
        self.stale = True  # until it is known better; the next operation will try again
        if operation.remaining() <= 0:
            raise TimeoutError("the operation's deadline has passed")
        seen = self.refreshed
        with self.refreshing.held(), operation.sharing(len(self.startup_nodes) or 1):
            if self.refreshed != seen:
                return  # while we waited for our turn
            # redis-py 5 forgets each node that fails, and with the last one how to come back.
            missing = [ClusterNode(host, port) for host, port in self.seeds]
            nodes = _Listed(self.startup_nodes)
            for node in missing:
                nodes.setdefault(node.name, node)
            self.startup_nodes = nodes
            super().initialize(*args, **kwargs)
            self.refreshed += 1
            self.stale = False


def patiently(gate: Gate, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call what tries again while the keys of a slot are on two nodes.

    :raises redis.exceptions.TryAgainError: where that lasts. redis-py says that it was redirected
        for ever, which would be an outage; but each time a node has answered.
    """
    try:
        return call(*args, **kwargs)
    except redis_errors.ClusterError as exc:
        operation = current(gate)
        if type(exc) is redis_errors.ClusterError and operation and operation.split:
            raise operation.split from exc
        raise
