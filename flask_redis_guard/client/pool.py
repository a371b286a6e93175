"""The connection pool: bounded, waiting no longer than the deadline, gating who comes unannounced."""

from __future__ import annotations

import inspect
import threading
from typing import TYPE_CHECKING, Any

from redis.connection import BlockingConnectionPool

from flask_redis_guard.client.connections import GuardedConnection
from flask_redis_guard.client.operation import current
from flask_redis_guard.errors import RedisUnavailable

if TYPE_CHECKING:
    from flask_redis_guard.client.gate import Gate

#: redis-py before 5.3 insists on a command's name, later versions warn about one.
_NAMED = (
    inspect.signature(BlockingConnectionPool.get_connection).parameters["command_name"].default
    is inspect.Parameter.empty
)


class GuardedPool(BlockingConnectionPool):
    """A pool whose connections belong to one gate.

    Most callers come from a guarded client, inside an operation. Others (the pipelines of
    ``json()``, a plain ``redis.Redis`` built on this pool) are gated here: taking the connection
    starts an operation, giving it back ends it.

    :param gate: the client's gate.
    :param memory: a pool of the in-memory store, for development.
    :param connection_options: for redis-py's ``BlockingConnectionPool``.
    """

    def __init__(self, gate: Gate, memory: Any = None, **connection_options: Any) -> None:
        self.gate = gate
        self._memory = memory
        self._lock_class = threading.Lock
        super().__init__(**connection_options)

    @property
    def timeout(self) -> float:
        """Seconds to wait for a free connection: what is left of the operation's deadline."""
        operation = current()
        return self.gate.timeout if operation is None else max(0.0, operation.remaining())

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        """Do nothing: the deadline is the operation's."""

    @property
    def in_use(self) -> int:
        """How many connections are taken out of the pool now."""
        return int(self.max_connections - self.pool.qsize())

    def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        """Take a connection out of the pool, ready to use.

        :raises CircuitOpen: if the caller is in no operation and the breaker refuses.
        :raises redis.ConnectionError: if none is free before the deadline.
        """
        operation = current()
        if operation is not None:
            if operation.in_memory:
                return self._memory.get_connection(*self._words(command_name))
            return self._checked_out(command_name)
        try:
            return self._borrow(command_name)
        except RedisUnavailable:
            if not self.gate.in_memory:
                raise
            return self._memory.get_connection(*self._words(command_name))

    def _borrow(self, command_name: Any) -> Any:
        operation = self.gate.begin("CONNECTION")
        try:
            with operation:
                if self.gate.fault is not None:
                    self.gate.fault(operation)
                if operation.in_memory:  # a fault's stand-in: its connections tell nothing back
                    self.gate.succeed(operation)
                    return self._memory.get_connection(*self._words(command_name))
                connection = self._checked_out(command_name)
        except BaseException as exc:
            error = self.gate.fail(operation, exc)
            if error is exc:
                raise
            raise error from exc
        connection.borrowed = operation
        return connection

    def release(self, connection: Any) -> None:
        """Take a connection back; one that still owes a reply is closed first."""
        if not isinstance(connection, GuardedConnection):
            self._memory.release(connection)
            return
        operation, connection.borrowed = connection.borrowed, None
        if not connection.is_clean:
            connection.disconnect()
        super().release(connection)
        if operation is not None and not operation.settled:
            self.gate.succeed(operation)

    def _checked_out(self, command_name: Any) -> Any:
        if self._lock_class is not threading.Lock:
            # gevent patched since: the queue's locks would stop all greenlets at once.
            self._lock_class = threading.Lock
            self.reset()
        return super().get_connection(*self._words(command_name))

    @staticmethod
    def _words(command_name: Any) -> tuple[Any, ...]:
        return (command_name or "_",) if _NAMED else ()
