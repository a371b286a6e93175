"""Connections to the nodes of a cluster, which tell their operation how each node does."""

from __future__ import annotations

from typing import Any, cast

import redis
from redis import exceptions as redis_errors
from redis.cluster import get_node_name

from flask_redis_guard.client.gate import Gate
from flask_redis_guard.client.operation import Operation
from flask_redis_guard.client.outcomes import judge
from flask_redis_guard.client.topology.shards import ClusterBreaker, Passage
from flask_redis_guard.client.transport.connections import (
    GuardedConnection,
    TCPConnection,
    TLSConnection,
)
from flask_redis_guard.client.transport.pool import GuardedPool
from flask_redis_guard.core.breaker import Outcome


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

    def visit(self, operation: Operation) -> None:
        """Have an operation pass the breaker of this node, unless it has done so.

        :raises CircuitOpen: if it may not; no socket is touched then.
        """
        permit = operation.permit
        if isinstance(permit, Passage):
            breaker = cast("ClusterBreaker", self.gate.breaker)
            refusal = breaker.visit(permit, self.node)
            if refusal is not None:
                raise self.gate.refuse(operation.name, refusal)

    def take(self, operation: Operation) -> Any:
        """Take a connection, if the breaker of this node lets the operation pass.

        :raises CircuitOpen: if it does not; no socket is touched.
        """
        self.visit(operation)
        try:
            return super().take(operation)
        except Exception as exc:
            note(operation, self.node, exc)
            raise
