"""The pool: bounded, waiting no longer than the deadline, gating who comes unannounced."""

from __future__ import annotations

import inspect
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

import redis
from redis.connection import ConnectionPool

from flask_redis_guard.client.operation import current
from flask_redis_guard.client.transport.connections import GuardedConnection
from flask_redis_guard.core.process import ProcessLock
from flask_redis_guard.errors import RedisUnavailable

if TYPE_CHECKING:
    from flask_redis_guard.client.gate import Gate

logger = logging.getLogger("flask_redis_guard")

#: redis-py before 5.3 insists on a command's name, later versions warn about one.
_NAMED = (
    inspect.signature(ConnectionPool.get_connection).parameters["command_name"].default
    is inspect.Parameter.empty
)


class GuardedPool(ConnectionPool):
    """A pool whose connections belong to one gate.

    Most callers come from a guarded client, inside an operation. Others (the pipelines of
    ``json()``, a plain ``redis.Redis`` built on this pool) are gated here: taking the connection
    starts an operation, giving it back ends it.

    :param gate: the client's gate.
    :param memory: a pool of the in-memory store, for development.
    :param connection_options: for redis-py's ``ConnectionPool``.
    """

    def __init__(self, gate: Gate, memory: Any = None, **connection_options: Any) -> None:
        self.gate = gate
        self._memory = memory
        self._resetting = ProcessLock()
        super().__init__(**connection_options)

    def reset(self) -> None:
        """Start empty; redis-py calls this in every new process."""
        self._lock_class = threading.Lock
        # Not all versions make their locks here; one that a thread of the parent process held
        # while it forked, or that was made before gevent patched threads, would never be free.
        self._lock = threading.RLock()
        self._freed = threading.Condition()
        self._waiting = 0
        super().reset()

    def _checkpid(self) -> None:
        # redis-py's own waits for a lock that a thread of the parent process may have held.
        if self.pid != os.getpid():
            with self._resetting:
                if self.pid != os.getpid():
                    self.reset()

    def __repr__(self) -> str:
        # Some versions of redis-py show all options here, the password among them.
        options, names = self.connection_kwargs, ("host", "port", "path", "db")
        shown = ", ".join(f"{name}={options[name]}" for name in names if name in options)
        return f"<{type(self).__name__}({shown})>"

    @property
    def in_use(self) -> int:
        """How many connections are taken out of the pool now."""
        return len(self._in_use_connections)

    def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        """Take a connection out of the pool, ready to use.

        :raises CircuitOpen: if the caller is in no operation and the breaker refuses.
        :raises redis.ConnectionError: if none is free before the deadline.
        """
        operation = current(self.gate)
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
        connection.borrowed, connection.holder = operation, None
        return connection

    def release(self, connection: Any) -> None:
        """Take a connection back; one that still owes a reply is closed first.

        One that is not out, or that meanwhile serves another operation, stays where it is:
        redis-py's cluster client gives some connections back twice.
        """
        if not isinstance(connection, GuardedConnection):
            self._memory.release(connection)
            return
        holder = connection.holder
        foreign = holder is not None and not holder.settled and holder is not current(self.gate)
        if foreign or connection not in self._in_use_connections:
            return
        connection.holder = None
        borrowed, connection.borrowed = connection.borrowed, None
        if not connection.is_clean:
            connection.disconnect()
        super().release(connection)  # type: ignore[arg-type]
        if self._waiting:
            with self._freed:
                self._freed.notify()
        if borrowed is not None and not borrowed.settled:
            self.gate.abandon(borrowed)

    def re_auth_callback(self, token: Any) -> None:
        """Have all connect anew: a credential provider has new credentials.

        redis-py's own sends them on all idle connections while it holds the pool's lock, at which
        no deadline ends.
        """
        with self._lock:
            for connection in self._in_use_connections:
                connection.retire()
        self.disconnect_idle()

    def disconnect_idle(self) -> None:
        """Close what waits in the pool: the primary is another server now."""
        with self._lock:
            for connection in self._available_connections:
                connection.disconnect()

    def _checked_out(self, command_name: Any) -> Any:
        if self._lock_class is not threading.Lock:
            if self._created_connections:
                logger.warning(
                    "gevent patched sockets after connections to Redis had been made, which are "
                    "dropped now. Call monkey.patch_all() before anything else is imported."
                )
            self.reset()  # the old locks would stop all greenlets at once
        while True:
            try:
                connection: Any = super().get_connection(*self._words(command_name))
            except redis.ConnectionError as exc:
                if not str(exc).startswith("Too many connections") or not self._wait():
                    raise
            else:
                connection.holder = current(self.gate)
                return connection

    def _wait(self) -> bool:
        """Wait until a connection may be free; false when the deadline has passed."""
        operation = current(self.gate)
        left = self.gate.timeout if operation is None else operation.remaining()
        with self._freed:
            self._waiting += 1
            try:
                if left > 0 and not self._available_connections:
                    self._freed.wait(left)
            finally:
                self._waiting -= 1
        return left > 0

    @staticmethod
    def _words(command_name: Any) -> tuple[Any, ...]:
        return (command_name or "_",) if _NAMED else ()
