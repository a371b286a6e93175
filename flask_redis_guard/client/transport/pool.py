"""The pool: bounded by the deadline, and gating connections borrowed without an operation."""

from __future__ import annotations

import contextlib
import gc
import inspect
import logging
import os
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

import redis
from redis.connection import ConnectionPool

from flask_redis_guard.client.channel import Channel
from flask_redis_guard.client.operation import Operation, current
from flask_redis_guard.client.transport.connections import GuardedConnection
from flask_redis_guard.core.process import watch_forks
from flask_redis_guard.errors import ConfigurationError, RedisUnavailable

if TYPE_CHECKING:
    from flask_redis_guard.client.gate import Gate

logger = logging.getLogger("flask_redis_guard")

#: redis-py before 5.3 insists on a command's name, later versions warn about one.
_NAMED = (
    inspect.signature(ConnectionPool.get_connection).parameters["command_name"].default
    is inspect.Parameter.empty
)


#: Connections that a pool has at most, whatever it is told.
_MOST = 65_536


def no_retries(retry: Any) -> ConfigurationError:
    """Return the error of who would have a client try again."""
    return ConfigurationError("retry", type(retry).__name__, "nothing: one operation is one try")


class _Claim:
    """Stands for a connection while it is made."""


class _Turn:
    """Somebody who waits for a connection."""

    def __init__(self) -> None:
        self.connection: Any = None
        self.lock = threading.Lock()
        self.lock.acquire()


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
        if memory is not None:
            gate.memory = memory
        #: Lets callers share round trips; ``None`` where messages could stand among the replies.
        self.channel = None if str(connection_options.get("protocol", 2)) == "3" else Channel(self)
        super().__init__(**connection_options)
        watch_forks(self)

    def set_retry(self, retry: Any) -> None:
        """Refuse, as the client does.

        :raises ConfigurationError: always.
        """
        raise no_retries(retry)

    def after_fork(self) -> None:
        """Start empty: what is connected belongs to the parent process."""
        self.reset()

    def reset(self) -> None:
        """Start empty; redis-py calls this in every new process.

        Nothing here is guarded by a lock, which a thread of the parent process could have held
        while it forked, and a signal handler's exception could leave locked: each step is one
        operation of a list.
        """
        self._lock_class = threading.Lock
        self._lock = threading.RLock()  # for what redis-py's own methods do
        self._available_connections: list[Any] = []
        self._turns: deque[_Turn] = deque()
        # Each connection that exists has one of so many numbers. It is free again once nobody
        # knows the connection any more, as after an exception between two lines of its user's.
        self._made: dict[int, weakref.ref[Any]] = {}
        self._numbers = iter(range(min(self.max_connections, _MOST)))
        self.pid = os.getpid()
        if self.channel is not None:
            self.channel.forget()

    @property
    def _in_use_connections(self) -> set[Any]:
        return {connection for connection in self._connections() if connection.is_out}

    @_in_use_connections.setter
    def _in_use_connections(self, connections: set[Any]) -> None:
        """Kept by the connections themselves; redis-py's own constructor sets it."""

    @property
    def _created_connections(self) -> int:
        return len(self._connections())

    @_created_connections.setter
    def _created_connections(self, number: int) -> None:
        """Counted here; redis-py's own constructor sets it."""

    def _connections(self) -> list[Any]:
        found = (ref() for ref in list(self._made.values()))
        return [each for each in found if isinstance(each, GuardedConnection)]

    def _checkpid(self) -> None:
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
        return sum(connection.is_out for connection in self._connections())

    @property
    def waiting(self) -> int:
        """How many callers wait for a connection now."""
        return len(self._turns)

    def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        """Take a connection out of the pool, ready to use.

        :raises CircuitOpen: if the caller is in no operation and the breaker refuses.
        :raises redis.ConnectionError: if none is free before the deadline.
        """
        operation = current(self.gate)
        if operation is not None:
            if operation.in_memory:
                return self.gate.memory.get_connection(*self._words(command_name))
            return self.take(operation)
        try:
            return self._borrow(command_name)
        except RedisUnavailable:
            if not self.gate.in_memory:
                raise
            return self.gate.memory.get_connection(*self._words(command_name))

    def _borrow(self, command_name: Any) -> Any:
        operation = self.gate.begin("CONNECTION")
        try:
            with operation:
                connection = self.take(operation)
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
            if self.gate.memory is not None:  # else a user put it into a client, as in any pool
                self.gate.memory.release(connection)
            return
        holder = connection.holder
        foreign = holder is not None and not holder.settled and holder is not current(self.gate)
        if foreign or not connection.is_out:
            return
        connection.holder = None
        borrowed, connection.borrowed = connection.borrowed, None
        if not connection.is_clean:
            connection.disconnect()
        if connection.home is self._available_connections and connection.pid == os.getpid():
            self._put_back(connection)
        else:
            connection.disconnect()
        if borrowed is not None and not borrowed.settled:
            self.gate.abandon(borrowed)

    def retire_all(self) -> None:
        """Close what waits in the pool, and what is in use when it comes back.

        redis-py's way to new credentials sends them on all idle connections while it holds the
        pool's lock, at which no deadline ends.
        """
        for connection in self._connections():
            connection.retire()
        self.disconnect_idle()

    def disconnect_idle(self) -> None:
        """Close what waits in the pool: the primary is another server now."""
        idle: list[
            Any
        ] = []  # out of the pool meanwhile: nobody else takes one that is being closed
        with contextlib.suppress(IndexError):
            while True:
                idle.append(self._available_connections.pop())
        for connection in idle:
            connection.disconnect()
        self._available_connections[:0] = idle
        if self._turns:
            self._give(None)

    def serves_besides(self, connection: Any) -> bool:
        """Whether another connection of this pool is connected."""
        return any(
            other._sock is not None and not other.is_greeting
            for other in self._connections()
            if other is not connection
        )

    def _keep_up(self) -> None:
        """Start empty in a new process, and once gevent has patched threads."""
        if self._lock_class is not threading.Lock:
            if self._created_connections and self.pid == os.getpid():
                logger.warning(
                    "gevent patched sockets after connections to Redis had been made, which are "
                    "dropped now. Call monkey.patch_all() before anything else is imported."
                )
            self.reset()  # the old locks would stop all greenlets at once
        self._checkpid()

    def take(self, operation: Operation) -> Any:
        """Take a connection out of the pool for an operation, ready to use.

        :raises redis.ConnectionError: if none is free before its time is used up.
        """
        if self._lock_class is not threading.Lock:
            self._keep_up()
        try:
            connection = self._available_connections.pop()
            connection.is_out = True
        except IndexError:
            connection = self._free() or self._wait(operation)
        connection.holder = operation
        if not connection.is_fresh:
            try:
                connection.renew()
                self.make_ready(connection, operation)
            except BaseException:
                connection.holder = None
                self.release(connection)
                raise
        return connection

    def give_back(self, connection: Any) -> None:
        """Put back what :meth:`take` gave, as :meth:`release` does, when its operation is over.

        :param connection: the connection, which nobody else knows.
        """
        connection.holder = None
        if (
            self._turns
            or connection._sock is None
            or connection.home is not self._available_connections
            or connection._owed
            or connection._altered
            or connection._demoted
        ):
            self.release(connection)
            return
        connection.is_out = False
        self._available_connections.append(connection)
        if self._turns:  # somebody has come meanwhile
            self._give(None)

    def take_greeted(self, operation: Operation) -> Any:
        """Take a connection out of the pool that owes no reply to its handshake."""
        connection = self.take(operation)
        connection._sock.operation = operation
        try:
            connection.be_greeted(operation)
        except BaseException:
            connection.holder = None
            self.release(connection)
            raise
        return connection

    def make_ready(self, connection: Any, operation: Operation) -> None:
        """Connect unless connected, inside the operation."""
        if operation.active:
            connection.connect()
        elif connection._sock is None or connection.is_greeting:
            with operation:
                connection.connect()

    def exchange(self, operation: Operation, packed: bytes) -> Any:
        """Send one command and return its reply, in bytes; an error as an exception.

        :raises redis.RedisError: if there is none.
        """
        connection = self.take(operation)
        try:
            if connection._greetings or connection._distance or connection.health_check_interval:
                with operation:
                    return connection.ask_unsettled(packed)
            return connection.exchange(operation, packed)
        finally:
            self.give_back(connection)

    def _free(self) -> Any:
        """Return a connection that is free or new; ``None`` if all are in use."""
        try:
            connection = self._available_connections.pop()
        except IndexError:
            claim = _Claim()
            number = self._claim(weakref.ref(claim))
            if number is None:
                return None
            connection = self.connection_class(**self.connection_kwargs)
            connection.has_company = self.serves_besides
            connection.home = self._available_connections
            self._made[number] = weakref.ref(connection)
        connection.is_out = True
        return connection

    def _claim(self, mine: weakref.ref[Any]) -> int | None:
        """Return the number of a connection that may be made, or none.

        :param mine: of something that lives as long as it is being made.
        """
        number = next(self._numbers, None)
        if number is not None and self._made.setdefault(number, mine) is mine:
            return number
        for number in range(min(self.max_connections, _MOST)):
            theirs = self._made.setdefault(number, mine)
            if theirs is not mine and theirs() is None:
                removed = self._made.pop(number, theirs)
                theirs = self._made.setdefault(number, mine if removed is theirs else removed)
            if theirs is mine:
                return number
        return None

    def _wait(self, operation: Operation) -> Any:
        """Wait for a connection, in the order of arrival.

        :raises redis.ConnectionError: if none is free before the operation's time is used up.
        """
        turn = _Turn()
        self._turns.append(turn)

        def ready(seconds: float) -> bool:
            if turn.connection is None:
                turn.connection = self._free()
            if turn.connection is None and turn.lock.acquire(timeout=seconds):
                if turn.connection is None:  # somebody else was faster
                    turn.connection = self._free()
                if turn.connection is None:
                    self._turns.appendleft(turn)
            return turn.connection is not None

        try:
            operation.wait(ready, for_redis=False)
        except BaseException:
            self._withdraw(turn)
            if turn.connection is not None:
                self._put_back(turn.connection)
            raise
        self._withdraw(turn)
        if turn.connection is None and self.gate.interrupted:
            self.gate.interrupted = False
            gc.collect()  # what was interrupted may keep a connection in a cycle of references
            turn.connection = self._free()
        if turn.connection is None:
            raise redis.ConnectionError("No connection available")
        return turn.connection

    def _withdraw(self, turn: _Turn) -> None:
        """End waiting, which may be too late: then there is a connection."""
        try:
            self._turns.remove(turn)
        except ValueError:
            if turn.connection is None:  # somebody is about to give one
                turn.lock.acquire(timeout=1)

    def _put_back(self, connection: Any) -> None:
        connection.is_out = False
        if not connection.is_greeting and self._give(connection):
            return
        if connection._sock is None or connection.is_greeting:
            self._available_connections.insert(0, connection)  # those that are ready go first
        else:
            self._available_connections.append(connection)
        if self._turns:  # somebody has come meanwhile
            self._give(None)

    def _give(self, connection: Any) -> bool:
        """Hand a connection to who waits for longest; ``None`` lets them look for themselves."""
        try:
            turn = self._turns.popleft()
        except IndexError:
            return False
        if connection is not None:
            connection.is_out = True
            turn.connection = connection
        turn.lock.release()
        return True

    @staticmethod
    def _words(command_name: Any) -> tuple[Any, ...]:
        return (command_name or "_",) if _NAMED else ()
