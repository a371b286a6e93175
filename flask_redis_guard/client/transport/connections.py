"""Connections that keep to the deadline and never hand on a stale reply.

Every way in which a caller can leave a connection with a reply outstanding ends in a disconnect:
redis-py does so for most exceptions while reading, but not for a greenlet killed between sending
and reading, in a half-finished handshake, or on a Sentinel's connection. Therefore the replies
that are owed are counted.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar

from redis import exceptions as redis_errors
from redis.connection import Connection, DefaultParser, UnixDomainSocketConnection

from flask_redis_guard.client.operation import Operation, current
from flask_redis_guard.client.replies import Incomplete, read_reply
from flask_redis_guard.client.transport.commands import (
    PLAIN,
    blocking_seconds,
    is_lasting,
    is_plain,
)
from flask_redis_guard.client.transport.handshake import Handshake
from flask_redis_guard.client.transport.names import NAMES
from flask_redis_guard.client.transport.sockets import (
    NOT_READY,
    DeadlineSocket,
    Step,
    dial,
    is_ready,
    native_poll,
)
from flask_redis_guard.client.transport.tls import CertifiedConnection

if TYPE_CHECKING:
    from flask_redis_guard.client.gate import Gate


#: What redis-py's own parser raises for what is no RESP: numbers that are none, endless nesting.
_UNREADABLE = (ValueError, TypeError, RecursionError, OverflowError)


def _without_delay(sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class GuardedConnection(Handshake):
    """What all connection classes of the guard have in common; mixed in before redis-py's class."""

    gate: Gate  # set on the subclass that each client makes for itself
    borrowed: Operation | None = None  # of a caller that took the connection without an operation
    holder: Operation | None = None  # the operation that took it out of the pool
    _reads_itself = False  # whether redis-py's class does more with a reply than read it
    home: list[Any] | None = None  #: where its pool keeps it while nobody has it
    is_out = False  #: whether it is taken out of its pool
    #: Gives the addresses that connections are made to instead, without TLS: while a test has a
    #: fault in place. ``None`` from it leaves a connection alone.
    detour: ClassVar[Callable[[Any], list[Any] | None]] = staticmethod(lambda connection: None)
    _packed = 0
    _blocking = 0.0
    _demoted = False
    _dialling: Generator[Step, None, Any] | None = None  # begun, and not yet connected
    _awaited: Step | None = None
    _begun = 0.0
    _begun_by: tuple[Operation, float] | None = None  # and what that had waited then
    _distance = 0.0  # seconds that connecting took: at least one round trip
    # What redis-py's classes give:
    _poll: Callable[[int], list[Any]]  # tells whether something can be read
    _error_message: Callable[[Any], str]
    _host_error: Callable[[], str]
    _socket_timeout: float | None = None
    check_health: Callable[[], None]
    health_check_interval: Any
    host: Any
    pid: int
    port: Any
    socket_keepalive: Any
    socket_keepalive_options: Any
    socket_type: Any

    def operation(self) -> Operation | None:
        """Return the operation in progress on this connection.

        It is the one that took it out of its pool; who keeps a connection for longer, such as a
        subscriber or a pipeline that watches, is in another one each time.
        """
        operation = self.holder
        if operation is None or operation.settled:
            operation = current(self.gate) or self.borrowed
        return None if operation is None or operation.settled else operation

    def connect(self, *args: Any, **kwargs: Any) -> None:
        """Connect unless connected.

        Where the time is used up on the way, the next caller goes on from there. After any
        other error it is closed.
        """
        if self._sock is not None and (not self._greetings or self.may_follow):
            return
        operation = self.operation()
        if operation is None:  # a held connection, such as a subscriber's, comes back
            self.gate.run("CONNECT", self.connect)
            return
        try:
            if self._sock is None:
                self._connect_socket(operation)
                self._greet()
            elif self._is_overdue(operation):
                self.disconnect()
                self.connect()
            self._sock.operation = operation
            if not self.may_follow:
                self._settle_greetings()
        except redis_errors.TimeoutError:
            raise
        except BaseException:
            self.disconnect()
            raise

    def connect_check_health(self, *_: Any, **__: Any) -> None:
        self.connect()

    @property
    def awaited(self) -> Step | None:
        """What connecting waits for, where it was begun."""
        return self._awaited

    def locate(self) -> None:
        """Find out where to connect to; called before each new attempt."""

    def addresses(self, operation: Operation) -> list[Any]:
        """Return the addresses to try, as :func:`socket.getaddrinfo` does."""
        host, port, family = self.host, self.port, self.socket_type
        return NAMES.addresses(host, port, family, operation)

    def prepare(self, sock: Any) -> None:
        """Set a new socket's options."""
        _without_delay(sock)
        if self.socket_keepalive:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in self.socket_keepalive_options.items():
                sock.setsockopt(socket.IPPROTO_TCP, name, value)

    def secure(self, sock: Any, seconds: float) -> Generator[Step, None, Any]:
        """Make a connected socket one that can be used, in steps."""
        yield from ()
        return sock

    def _connect_socket(self, operation: Operation) -> None:
        waited = operation.waited
        try:
            sock = self._dial(operation)
        except TimeoutError as exc:
            if operation.began_late(self._begun):
                raise redis_errors.TimeoutError("Not sent: too late to connect") from exc
            raise redis_errors.TimeoutError("Timeout connecting to server") from exc
        except OSError as exc:
            self.disconnect()
            raise redis_errors.ConnectionError(self._error_message(exc)) from exc
        begun_by, self._begun_by = self._begun_by, None
        if begun_by is not None and begun_by[0] is operation:
            waited = begun_by[1]  # it has seen to others meanwhile
        self._distance = (operation.waited - waited) / (2 if hasattr(sock, "pending") else 1)
        self._sock = DeadlineSocket(sock, self._socket_timeout or self.gate.timeout, operation.part)
        self._sock.operation = operation
        self._poll = native_poll(self._sock)

    def _dial(self, operation: Operation) -> Any:
        """Go on connecting, or begin to.

        :raises TimeoutError: if the operation's time is used up; it can be gone on with.
        """
        if self._dialling is not None and self._is_overdue(operation):
            self._hang_up()
        if self._dialling is None:
            self.locate()
            self._begun, self._awaited = monotonic(), None
            self._begun_by = operation, operation.waited
            detour = type(self).detour(self)
            if detour is None:
                self._dialling = self._steps(self.addresses(operation), operation.allowance)
            else:
                self._dialling = dial(detour, _without_delay)
        while True:
            if self._awaited and not operation.wait(partial(is_ready, *self._awaited)):
                raise TimeoutError("the operation's time is used up")
            if self._dialling is None:
                raise ConnectionAbortedError("closed while it connected")
            try:
                self._awaited = next(self._dialling)
            except StopIteration as connected:
                self._dialling = self._awaited = None
                return connected.value
            except BaseException:
                self._dialling = self._awaited = None
                raise

    def _steps(self, addresses: list[Any], seconds: float) -> Generator[Step, None, Any]:
        sock = yield from dial(addresses, self.prepare)
        return (yield from self.secure(sock, seconds))

    def _is_overdue(self, operation: Operation) -> bool:
        """Whether what was begun is better begun anew: its packets may be lost."""
        if monotonic() - self._begun < 2 * operation.allowance:
            return False
        awaited = self._awaited or (self._sock, select.POLLIN)
        return awaited[0] is None or not is_ready(*awaited, 0)

    def _hang_up(self) -> None:
        dialling, self._dialling, self._awaited = self._dialling, None, None
        if dialling is not None:
            # Where another thread takes a step of it just now, that one sees that it was closed.
            with contextlib.suppress(ValueError):
                dialling.close()

    def _write(self, data: Any) -> None:
        try:
            self._sock.sendall(data)
        except BaseException as exc:
            self._not_written(exc)
            raise
        finally:
            data = None  # it may hold a password, and error trackers collect variables

    def _not_written(self, exc: BaseException) -> None:
        """Close the connection: a part of a command may have been sent.

        :raises redis.RedisError: instead of an error that is none of redis-py's.
        """
        told = None
        if isinstance(exc, OSError) and not isinstance(exc, TimeoutError):
            told = self._last_words()
        self.disconnect()
        if isinstance(exc, TimeoutError):
            raise redis_errors.TimeoutError("Timeout writing to socket") from exc
        if isinstance(exc, OSError):
            raise told or redis_errors.ConnectionError(self._error_message(exc)) from exc

    # -- one command after the other -----------------------------------------------------------

    def disconnect(self, *args: Any, **kwargs: Any) -> None:
        try:
            self._hang_up()
            super().disconnect(*args, **kwargs)
        finally:
            # Also where a signal handler raises in the middle. What it owes is forgotten only once
            # there is no socket that it could come from.
            self._sock = None
            self._owed, self._greetings, self._distance = 0, None, 0.0
            self._demoted = self._altered = False

    @property
    def is_clean(self) -> bool:
        """Whether the next caller may have it: it owes no reply, leads to no replica, and is in
        the state that the handshake left it in."""
        return self._owed == 0 and not self._demoted and not self._altered

    @property
    def is_greeting(self) -> bool:
        """Whether it is connected but its handshake is not answered yet."""
        return bool(self._greetings)

    def retire(self) -> None:
        """Have it closed when it is given back."""
        self._altered = True

    @property
    def is_fresh(self) -> bool:
        """Whether it is connected and nothing has arrived that nobody asked for, nor its end."""
        if self._sock is None or self._greetings:
            return False
        return not (self._unread() or self._poll(0))

    def can_read(self, timeout: float = 0) -> bool:
        """Wait for a message; the handshake's replies are none."""
        ends, sock = monotonic() + timeout, self._sock
        if self._greetings and sock is not None:
            if not is_ready(sock, select.POLLIN, timeout):
                return False
            self._settle_greetings()
        return bool(super().can_read(max(0.0, ends - monotonic())))  # type: ignore[misc]

    def renew(self) -> None:
        """Connect anew if the server hung up meanwhile, as the pool does at checkout."""
        if self._greetings and not self._has_been_answered():
            return
        try:
            broken = self._sock is not None and not self.is_fresh and self.can_read()
        except (redis_errors.ConnectionError, redis_errors.TimeoutError, OSError):
            broken = True
        if broken:
            self.disconnect()

    def _has_been_answered(self) -> bool:
        """Read the replies to the handshake if they have come; closed if the server hung up."""
        if not is_ready(self._sock, select.POLLIN, 0):
            return False
        try:
            self._settle_greetings()
        except (redis_errors.RedisError, OSError):
            self.disconnect()  # whatever it was, connecting anew tells
        return True

    def send_command(self, *args: Any, **kwargs: Any) -> None:
        self._blocking = blocking_seconds(args)
        self._altered = self._altered or is_lasting(args)
        super().send_command(*args, **kwargs)  # type: ignore[misc]

    def pack_commands(self, commands: Iterable[Sequence[Any]]) -> Any:
        commands = list(commands)
        self._packed = len(commands)
        # What a transaction's MULTI changes ends with its EXEC.
        ended = ("MULTI",) if commands and commands[-1][0] == "EXEC" else ()
        special = [
            args
            for args in commands
            if args[0] not in PLAIN and args[0] not in ended and not is_plain(args)
        ]
        if special:
            self._altered = self._altered or any(map(is_lasting, special))
            self._blocking = math.fsum(map(blocking_seconds, special))
        return super().pack_commands(commands)  # type: ignore[misc]

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        blocking, self._blocking = self._blocking, 0.0
        packed, self._packed = self._packed or 1, 0
        if self.borrowed is not None and not self._owed:
            self._begin_again(self.borrowed)
        if self._demoted and not self._owed:
            self.disconnect()  # its holder looks for the primary anew
        if self._sock is None:
            self.connect()
        operation = self._sock.operation = self.operation()
        if self._distance and operation is not None:
            self._check_distance(operation)
        self._owed += packed
        try:
            if check_health and self.health_check_interval:
                self.check_health()
            for item in [command] if isinstance(command, str) else command:
                self._write(item)
        except Exception as exc:
            self._tell(exc)
            raise
        if blocking and operation is not None:
            operation.patience += blocking

    def _check_distance(self, operation: Operation) -> None:
        """Keep a new connection for the next caller where this one cannot be answered any more.

        :raises redis.TimeoutError: if less time is left than the way there and back takes.
        """
        distance, self._distance = self._distance, 0.0
        if operation.remaining() < distance:
            raise redis_errors.TimeoutError("Not sent: no time is left for the reply")

    def ask(self, operation: Operation, args: tuple[Any, ...]) -> None:
        """Send one plain command (see :mod:`~flask_redis_guard.client.transport.commands`) for the
        operation that took this connection out of its pool.

        :param operation: the operation.
        :param args: the command's words.
        """
        packed = self._command_packer.pack(*args)
        sock = self._sock
        sock.operation = operation
        if self.health_check_interval:
            self.check_health()
            sock = self._sock
        if self._distance:
            self._check_distance(operation)
        self._owed = 1
        try:
            for data in packed:
                sock.sendall(data)
        except BaseException as exc:
            self._not_written(exc)
            raise

    def read_response(self, disable_decoding: bool = False, **options: Any) -> Any:
        try:
            if self._greetings:
                self._settle_greetings()
            if options or self._reads_itself or self.health_check_interval:
                response = super().read_response(disable_decoding, **options)  # type: ignore[misc]
            else:
                response = self._parser.read_response(disable_decoding=disable_decoding)
        except BaseException as exc:
            self._not_read(exc, disconnect=options.get("disconnect_on_error", True))
            raise
        self._owed = self._owed - 1 if self._owed else 0
        if isinstance(response, redis_errors.ResponseError):
            self._not_read(response, disconnect=False, answered=True)
            raise response
        if self.borrowed is not None and not self._owed and not self.borrowed.settled:
            self.gate.succeed(self.borrowed)
        return response

    def _not_read(self, exc: BaseException, *, disconnect: bool, answered: bool = False) -> None:
        """Close the connection after an error that was no reply, as redis-py does.

        :raises redis.RedisError: instead of an error that is none of redis-py's.
        """
        error = exc
        if not answered and not isinstance(exc, redis_errors.ResponseError):
            self._owed = max(0, self._owed - 1)
            if disconnect:
                self.disconnect()
            where = self._host_error()
            if isinstance(exc, TimeoutError):
                error = redis_errors.TimeoutError(f"Timeout reading from {where}")
            elif isinstance(exc, OSError):
                error = redis_errors.ConnectionError(f"Error while reading from {where} : {exc}")
            elif isinstance(exc, _UNREADABLE) and not isinstance(exc, UnicodeError):
                error = redis_errors.InvalidResponse(f"Protocol Error: {type(exc).__name__}")
        # A primary that became a replica behind an address that now means another server.
        self._demoted = self._demoted or isinstance(exc, redis_errors.ReadOnlyError)
        if isinstance(error, Exception):
            self._tell(error)
        if error is not exc:
            raise error from exc

    def ask_unsettled(self, packed: bytes) -> Any:
        """As :meth:`exchange`, within the operation and with the connection's own parser: it is
        new, or to be asked how it is, and there are other replies to read before."""
        self.send_packed_command([packed])
        try:
            return self.read_response(disable_decoding=True)
        except redis_errors.ResponseError as exc:
            return exc

    def exchange(self, operation: Operation, packed: bytes) -> Any:
        """Send one command that does not wait at the server, and return its reply.

        :param packed: the command, as it is sent.
        :returns: the reply, in bytes; an error as an exception.
        :raises redis.RedisError: if there is none; the connection is closed then.
        """
        sock = self._sock
        sock.operation = operation
        self._owed = 1
        try:
            data = self._send_and_receive(sock, operation, packed)
            line, _, text = data.partition(b"\r\n")
            if line == b"$%d" % (len(text) - 2) and text[-2:] == b"\r\n":
                self._owed = 0
                return text[:-2]  # as most are: one text, received at once
            reply = self._read_on(sock, data)
        except TimeoutError as exc:
            self.disconnect()
            raise redis_errors.TimeoutError("Timeout waiting for a reply") from exc
        except OSError as exc:
            self.disconnect()
            raise redis_errors.ConnectionError(self._error_message(exc)) from exc
        except BaseException:
            self.disconnect()
            raise
        self._owed = 0
        self.note_reply(reply)
        return reply

    @staticmethod
    def _send_and_receive(sock: DeadlineSocket, operation: Operation, packed: bytes) -> bytes:
        """Send a command, and receive the beginning of its reply.

        Most are sent at once, and answered in the first part of the operation's time: the
        socket's own methods are all that is called then.
        """
        try:
            sent = sock.send(packed)
        except (TimeoutError, *NOT_READY):
            sent = 0
        if sent != len(packed):
            sock.send_rest(memoryview(packed)[sent:])
        began = monotonic()
        try:
            received: bytes = sock.receive(65536)
        except TimeoutError:
            return sock.go_on_receiving(operation, began)
        except NOT_READY:
            return sock.go_on_receiving()
        operation.waited += monotonic() - began
        return received

    @staticmethod
    def _read_on(sock: DeadlineSocket, data: bytes) -> Any:
        """Return the one reply of which the beginning was received."""
        while True:
            try:
                reply, end = read_reply(data, 0)
                break
            except Incomplete:
                more = sock.recv(65536) if data else b""
                if not more:
                    raise redis_errors.ConnectionError("Connection closed by server.") from None
                data += more
        if end != len(data):
            raise redis_errors.InvalidResponse("Protocol Error: more than one reply")
        return reply

    def be_greeted(self, operation: Operation) -> None:
        """Read what is outstanding of the handshake, and check that all is well where asked to."""
        if self._greetings:
            self._settle_greetings()
        if self._distance:
            self._check_distance(operation)
        if self.health_check_interval:
            self.check_health()

    def note_reply(self, reply: Any) -> None:
        """Leave a server that says it is a replica."""
        if isinstance(reply, redis_errors.ReadOnlyError):
            self._demoted = True

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

    secure = CertifiedConnection.secure


class UnixConnection(GuardedConnection, UnixDomainSocketConnection):
    """A guarded connection over a unix domain socket."""

    def addresses(self, operation: Operation) -> list[Any]:
        return [(socket.AF_UNIX, socket.SOCK_STREAM, 0, "", self.path)]

    def prepare(self, sock: Any) -> None:
        """There is nothing to set."""


def bind(kind: type[Any], gate: Gate, **attributes: Any) -> type[Any]:
    """Return a subclass of a guarded connection class that belongs to one gate.

    redis-py passes keyword arguments through many hands (Cluster drops those it does not know), so
    the gate travels in the class.

    :param kind: one of the classes above, or of a topology.
    :param gate: the client's gate.
    :param attributes: what else belongs to the client.
    """
    named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), {**named, "gate": gate, **attributes})


def knows_pushes() -> bool:
    """Return whether the parser tells what a server pushes (RESP3) from replies."""
    if DefaultParser.__name__ != "_HiredisParser":
        return True
    import hiredis

    return hasattr(hiredis, "PushNotification") and hasattr(DefaultParser, "handle_push_response")
