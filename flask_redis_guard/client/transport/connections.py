"""Connections that keep to the deadline and never hand on a stale reply.

Every way in which a caller can leave a connection with a reply outstanding ends in a disconnect:
redis-py does so for most exceptions while reading, but not for a greenlet killed between sending
and reading, in a half-finished handshake, or on a Sentinel's connection. Therefore the replies
that are owed are counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from redis import exceptions as redis_errors
from redis.connection import Connection, DefaultParser, UnixDomainSocketConnection

from flask_redis_guard.client.operation import Operation, current
from flask_redis_guard.client.outcomes import judge
from flask_redis_guard.client.transport.commands import blocking_seconds, is_lasting
from flask_redis_guard.client.transport.sockets import DeadlineSocket, bounded
from flask_redis_guard.client.transport.tls import CertifiedConnection

if TYPE_CHECKING:
    from flask_redis_guard.client.gate import Gate


class GuardedConnection:
    """What all connection classes of the guard have in common; mixed in before redis-py's class."""

    gate: Gate  # set on the subclass that each client makes for itself
    borrowed: Operation | None = None  # of a caller that took the connection without an operation
    holder: Operation | None = None  # the operation that took it out of the pool
    _sock: Any
    can_read: Callable[..., bool]
    _owed = 0
    _packed = 0
    _blocking = 0.0
    _connecting = False
    _demoted = False
    _altered = False
    _socket_timeout: float | None = None
    _socket_connect_timeout: float | None = None

    def operation(self) -> Operation | None:
        """Return the operation in progress on this connection."""
        operation = current(self.gate) or self.borrowed
        return None if operation is None or operation.settled else operation

    # redis-py reads these two while it connects, address by address, and for the TLS handshake.

    @property
    def socket_timeout(self) -> float | None:
        return self._remaining() if self._connecting else self._socket_timeout

    @socket_timeout.setter
    def socket_timeout(self, seconds: float | None) -> None:
        self._socket_timeout = seconds

    @property
    def socket_connect_timeout(self) -> float | None:
        return self._remaining() if self._connecting else self._socket_connect_timeout

    @socket_connect_timeout.setter
    def socket_connect_timeout(self, seconds: float | None) -> None:
        self._socket_connect_timeout = seconds

    def _left(self) -> float:
        operation = self.operation()
        return self.gate.timeout if operation is None else operation.remaining()

    def _remaining(self) -> float:
        left = self._left()
        if left <= 0:
            raise TimeoutError("the operation's deadline has passed")
        return left

    def connect(self, *args: Any, **kwargs: Any) -> None:
        """Connect unless connected; a connection that is not ready afterwards is closed."""
        if self._sock is not None:
            return
        if self.operation() is None:  # a held connection, such as a subscriber's, comes back
            self.gate.run("CONNECT", self.connect)
            return
        self._owed = 0
        try:
            super().connect(*args, **kwargs)  # type: ignore[misc]
            self.verify()
            self._altered = False  # by the handshake it is what everybody expects
        except redis_errors.ResponseError as exc:
            self.disconnect()
            if judge(exc).reason is not None:
                raise
            raise redis_errors.ConnectionError("Handshake refused") from exc
        except BaseException:
            self.disconnect()
            raise

    def verify(self) -> None:
        """Check whom a new connection leads to; any exception closes it."""

    def _connect(self) -> DeadlineSocket:
        self._connecting = True
        try:
            with bounded(self._remaining()):
                sock = super()._connect()  # type: ignore[misc]
        finally:
            self._connecting = False
        return DeadlineSocket(sock, self._socket_timeout or self.gate.timeout, self.operation)

    def disconnect(self, *args: Any, **kwargs: Any) -> None:
        self._owed = 0
        self._demoted = self._altered = False
        super().disconnect(*args, **kwargs)  # type: ignore[misc]

    @property
    def is_clean(self) -> bool:
        """Whether the next caller may have it: it owes no reply, leads to no replica, and is in
        the state that the handshake left it in."""
        return self._owed == 0 and not self._demoted and not self._altered

    def retire(self) -> None:
        """Have it closed when it is given back."""
        self._altered = True

    def renew(self) -> None:
        """Connect anew if the server hung up meanwhile, as the pool does at checkout."""
        try:
            broken = self._sock is not None and self.can_read()
        except (redis_errors.ConnectionError, redis_errors.TimeoutError, OSError):
            broken = True
        if broken:
            self.disconnect()

    def send_command(self, *args: Any, **kwargs: Any) -> None:
        self._blocking = blocking_seconds(args)
        self._altered = self._altered or is_lasting(args)
        super().send_command(*args, **kwargs)  # type: ignore[misc]

    def pack_commands(self, commands: Iterable[Sequence[Any]]) -> Any:
        commands = list(commands)
        self._packed = len(commands)
        # What a transaction's MULTI changes ends with its EXEC.
        ended = ("MULTI",) if commands and commands[-1][0] == "EXEC" else ()
        self._altered = self._altered or any(
            is_lasting(args) for args in commands if args[0] not in ended
        )
        self._blocking = math.fsum(blocking_seconds(args) for args in commands)
        return super().pack_commands(commands)  # type: ignore[misc]

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        blocking, self._blocking = self._blocking, 0.0
        packed, self._packed = self._packed or 1, 0
        if self.borrowed is not None and not self._owed:
            self._begin_again(self.borrowed)
        if self._demoted and not self._owed:
            self.disconnect()  # whoever holds it looks for the primary anew
        if self._sock is None:
            self.connect()
        self._owed += packed
        try:
            super().send_packed_command(command, check_health)  # type: ignore[misc]
        except Exception as exc:
            self._tell(exc)
            raise
        operation = self.operation()
        if blocking and operation is not None:
            operation.patience += blocking

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            response = super().read_response(*args, **kwargs)  # type: ignore[misc]
        except Exception as exc:
            self._owed = max(0, self._owed - 1)
            # A primary that became a replica behind an address that now means another server.
            self._demoted = self._demoted or isinstance(exc, redis_errors.ReadOnlyError)
            self._tell(exc)
            raise
        self._owed = max(0, self._owed - 1)
        if self._owed == 0 and self.borrowed is not None and not self.borrowed.settled:
            self.gate.succeed(self.borrowed)
        return response

    def _begin_again(self, borrowed: Operation) -> None:
        """Give a caller who keeps a connection a new operation for its next command."""
        if not borrowed.settled:
            if borrowed.remaining() > 0:
                return
            self.gate.abandon(borrowed)  # it thought for long between taking and sending
        self.borrowed = self.gate.begin(borrowed.name)

    def _tell(self, exc: Exception) -> None:
        """Note a broken connection; end the operation of a caller who came without one."""
        operation = self.operation()
        if operation is not None and not isinstance(exc, redis_errors.ResponseError):
            operation.broken = exc
        if self.borrowed is None or self.borrowed.settled:
            return
        error = self.gate.fail(self.borrowed, exc)
        if error is not exc:
            raise error from exc


class TCPConnection(GuardedConnection, Connection):
    """A guarded connection over TCP."""


class TLSConnection(GuardedConnection, CertifiedConnection):
    """A guarded connection over TLS."""


class UnixConnection(GuardedConnection, UnixDomainSocketConnection):
    """A guarded connection over a unix domain socket."""


def bind(kind: type[Any], gate: Gate, **attributes: Any) -> type[Any]:
    """Return a subclass of a guarded connection class that belongs to one gate.

    redis-py passes keyword arguments through many hands (Cluster drops those it does not know), so
    the gate travels in the class.

    :param kind: one of the classes above, or of a topology.
    :param gate: the client's gate.
    :param attributes: what else belongs to the client.
    """
    return type(kind.__name__, (kind,), {"gate": gate, **attributes})


def knows_pushes() -> bool:
    """Return whether the parser tells what a server pushes (RESP3) from replies."""
    if DefaultParser.__name__ != "_HiredisParser":
        return True
    import hiredis

    return hasattr(hiredis, "PushNotification") and hasattr(DefaultParser, "handle_push_response")
