"""Every socket that redis-py opens in this process, led through a relay that can fail.

While a :class:`Wire` is in place redis-py, whosoever uses it, connects to the relay on the
loopback interface instead of its server. The relay forwards to an upstream, or does what its
fault says: real sockets that refuse, fall silent, are late, answer with errors or break.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Protocol

import redis
import redis.asyncio.connection
import redis.connection

from flask_redis_guard.client.transport.connections import GuardedConnection
from flask_redis_guard.client.transport.sockets import DeadlineSocket
from flask_redis_guard.client.transport.tls import CertifiedConnection
from flask_redis_guard.testing.faults import HANDSHAKE, HEALTHY, Fault
from flask_redis_guard.testing.framing import Command, pack, reply_end, take_command

#: SO_LINGER on, zero seconds: close() sends a reset.
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

#: After these a server speaks unasked.
_STREAMS: Final = frozenset({"SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "MONITOR", "SYNC", "PSYNC"})

#: How redis-py's classes connect: each returns a socket, and one calls another for a part of it.
_CONNECT: Final = "_connect"
_CLASSES: Final = ("Connection", "UnixDomainSocketConnection", "SSLConnection")

#: Those in place, the newest last.
_wires: list[Wire] = []
_placing = threading.RLock()


class Upstream(Protocol):
    """Where a relay takes answers from."""

    #: Whether it knows the users and passwords of the client.
    knows_logins: bool
    #: The connection's socket, if there is one.
    sock: Any

    def ask(self, command: Command, push: Callable[[bytes], object]) -> bytes:
        """Forward one command and return its reply, as it is sent.

        :param command: the command.
        :param push: given what the server says unasked.
        :raises OSError: if there is none.
        """

    def close(self) -> None:
        """Hang up."""


class ServerUpstream:
    """A server, through a socket.

    :param sock: connected to it.
    :param knows_logins: whether it knows the users and passwords of the client.
    """

    def __init__(self, sock: Any, *, knows_logins: bool) -> None:
        self.knows_logins = knows_logins
        self.sock = sock
        self._received = b""
        sock.settimeout(None)

    def ask(self, command: Command, push: Callable[[bytes], object]) -> bytes:
        self.sock.sendall(command.raw)
        while True:
            reply = self._next()
            if not reply.startswith(b">"):
                return reply
            push(reply)

    def close(self) -> None:
        self.sock.close()

    def _next(self) -> bytes:
        while (end := reply_end(self._received)) is None:
            more = self.sock.recv(65536)
            if not more:
                raise ConnectionResetError("the server hung up")
            self._received += more
        reply, self._received = self._received[:end], self._received[end:]
        return reply


#: Makes an upstream for one connection of a client.
Dial = Callable[[], Upstream]


class Wire:
    """Leads connections through a relay.

    :param lead: gives what a redis-py connection's relay forwards to, or ``None`` for a connection
        that is left alone. It is given the connection and redis-py's own way to connect it.
    """

    def __init__(self, lead: Callable[[Any, Callable[[], Any]], Dial | None]) -> None:
        self._lead = lead
        #: Told the words of each command that is no part of a handshake.
        self.on_command: Callable[[list[bytes]], object] = lambda words: None
        self.changed = threading.Condition()
        self.fault = HEALTHY
        self._links: set[_Link] = set()
        self._closed = False
        self._outlasting: list[threading.Thread] = []
        self._selector = selectors.DefaultSelector()
        self._waker, wake = socket.socketpair()
        self._wake = wake
        self._selector.register(wake, selectors.EVENT_READ)
        self._listeners: list[socket.socket] = []
        # Bound, so that nobody else gets it, and not listening.
        self._refusing = _bound()
        self._acceptor = threading.Thread(target=self._accept, name="redis-wire", daemon=True)
        self._acceptor.start()

    def put(self, fault: Fault, *, cut: bool = False) -> None:
        """Have every connection, open or new, show a fault from now on.

        :param fault: the fault.
        :param cut: whether to reset those that are open, as a server that ends does.
        """
        with self.changed:
            self.fault = fault
            self.changed.notify_all()
        if cut or not fault.listens:
            self.cut()

    def cut(self) -> None:
        """Reset every connection, and wait until it is closed."""
        with self.changed:
            links = set(self._links)
            for link in links:
                link.end()
            self.changed.notify_all()
            self.changed.wait_for(lambda: not self._links & links, 5)

    def place(self) -> None:
        """Be in place: connections that are open are closed, so that they are made anew."""
        with _placing:
            _forget_outlasted()
            if not _wires:
                _interpose()
            _wires.append(self)
        for connection in _connections():
            dial = self._lead(connection, lambda: None)
            if dial is not None:
                _hang_up(connection)

    def remove(self, outlasting: Iterable[threading.Thread] = ()) -> None:
        """Be gone, and leave no connection behind.

        :param outlasting: threads that may still ask. As long as one of them lives it is refused,
            so that what began here does not end at another server.
        """
        with self.changed:
            self.fault = Fault(listens=False)
            self._outlasting = list(outlasting)
            self._closed = True  # from here on only those are led
        self._waker.send(b"x")
        self._acceptor.join()
        self.cut()
        with _placing:
            for sock in (self._waker, self._wake, *self._listeners):
                sock.close()
            self._selector.close()
            _forget_outlasted()

    @property
    def is_needed(self) -> bool:
        """Whether it leads connections, or keeps threads from making them."""
        return not self._closed or any(thread.is_alive() for thread in self._outlasting)

    def forget_all(self) -> None:
        """Let go of the last socket."""
        self._refusing.close()

    def address_for(self, connection: Any, connect: Callable[[], Any]) -> tuple[str, int] | None:
        """Return where a connection is to be made to instead; ``None`` if it is left alone.

        :param connection: of redis-py.
        :param connect: connects it to where it wants.
        """
        with self.changed:
            if self._closed:
                is_outlasting = threading.current_thread() in self._outlasting
                return _address(self._refusing) if is_outlasting else None
            dial = self._lead(connection, connect)
            if dial is None:
                return None
            if not self.fault.listens:
                return _address(self._refusing)
            listener = _bound()
            listener.listen(1)  # for this connection alone
            self._listeners.append(listener)
            self._selector.register(listener, selectors.EVENT_READ, dial)
            self._waker.send(b"x")
            return _address(listener)

    def _accept(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    self._wake.recv(4096)
                else:
                    self._connected(key.fileobj, key.data)
            if self._closed:
                return

    def _connected(self, listener: Any, dial: Dial) -> None:
        self._selector.unregister(listener)
        with self.changed:
            self._listeners.remove(listener)
        with listener:
            try:
                client, _ = listener.accept()
            except OSError:
                return  # out of descriptors: this one is reset, others go on
        client.setblocking(True)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = _Link(self, client, dial)
        with self.changed:
            self._links.add(link)
            if not self.fault.listens:
                link.end()
        threading.Thread(target=link.serve, name="redis-wire", daemon=True).start()

    def forget(self, link: _Link) -> None:
        """Take a link off the list when it is closed."""
        with self.changed:
            self._links.discard(link)
            self.changed.notify_all()


class _Link:
    """One connection of a client, and the one made for it to the upstream."""

    def __init__(self, wire: Wire, client: socket.socket, dial: Dial) -> None:
        self._wire = wire
        self._client = client
        self._dial = dial
        self._upstream: Upstream | None = None
        self._in_transaction = False
        self._spoilt = False
        self.ended = False

    def end(self) -> None:
        """Have both sides reset."""
        self.ended = True
        sides: list[Any] = [self._client]
        if self._upstream is not None and self._upstream.sock is not None:
            sides.append(self._upstream.sock)
        for sock in sides:
            with contextlib.suppress(OSError):
                # Wakes a thread that reads. The reset follows when it closes.
                sock.shutdown(socket.SHUT_RD)

    def serve(self) -> None:
        """Forward commands and their answers until a side hangs up."""
        _here.relays = True
        try:
            for command, received in self._commands():
                if not self._answer(command, received):
                    break
        except (OSError, ValueError, redis.RedisError):
            self.ended = True  # the client sees its connection reset, as from a server
        finally:
            if self.ended:
                with contextlib.suppress(OSError):
                    self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._client.close()
            if self._upstream is not None:
                self._upstream.close()
            self._wire.forget(self)

    def _commands(self) -> Iterator[tuple[Command, float]]:
        data = b""
        while True:
            received = self._client.recv(65536)
            if not received:
                return
            data, now = data + received, time.monotonic()
            while (taken := take_command(data)) is not None:
                command, end = taken
                data = data[end:]
                if command.words:
                    yield command, now

    def _answer(self, command: Command, received: float) -> bool:
        """Answer one command; false if the connection is to end."""
        if not self._may_go_on():
            return False
        if command.name not in HANDSHAKE:
            self._wire.on_command(command.words)
        fault = self._wire.fault
        error = fault.refusal(command.name)
        if error is not None:
            self._spoilt = self._in_transaction
            self._client.sendall(error)
            return True
        if command.name in _STREAMS:
            self._stream(command)
            return False
        reply = self._ask(command)
        if not self._may_go_on(None if command.name in HANDSHAKE else received):
            return False
        if self._wire.fault.breaks and command.name not in HANDSHAKE:
            self._client.sendall(reply[: max(1, len(reply) // 2)])
            self.ended = True
            return False
        self._client.sendall(reply)
        return True

    def _may_go_on(self, received: float | None = None) -> bool:
        """Wait as the fault says; false if the connection is to end instead.

        :param received: when what is answered now was received.
        """
        wire = self._wire
        with wire.changed:
            while not self.ended:
                fault, left = wire.fault, 0.0
                if received is not None and fault.delay:
                    left = received + fault.delay - time.monotonic()
                if fault.answers and left <= 0:
                    return True
                wire.changed.wait(left if fault.answers else None)
        return False

    def _ask(self, command: Command) -> bytes:
        upstream = self._connected()
        if command.name == "EXEC" and self._spoilt:
            self._in_transaction = self._spoilt = False
            upstream.ask(Command([b"DISCARD"], pack(b"DISCARD")), self._client.sendall)
            return b"-EXECABORT Transaction discarded because of previous errors.\r\n"
        if command.name == "MULTI":
            self._in_transaction, self._spoilt = True, False
        elif command.name in ("EXEC", "DISCARD"):
            self._in_transaction = self._spoilt = False
        if not upstream.knows_logins:
            if command.name == "AUTH":
                return b"+OK\r\n"
            command = _without_login(command)
        return upstream.ask(command, self._client.sendall)

    def _connected(self) -> Upstream:
        if self._upstream is None:
            self._upstream = self._dial()
            if self.ended:
                raise ConnectionResetError("ended while it connected")
        return self._upstream

    def _stream(self, command: Command) -> None:
        """Forward whatever comes, either way, as long as nothing is wrong."""
        upstream = self._connected()
        if upstream.sock is None:
            self._client.sendall(b"-ERR the in-memory store has no subscriptions under a fault\r\n")
            return
        upstream.sock.sendall(command.raw)
        answers = threading.Thread(
            target=self._forward, args=(upstream.sock, self._client), daemon=True
        )
        answers.start()
        self._forward(self._client, upstream.sock)
        self.end()
        answers.join()

    def _forward(self, source: Any, target: Any) -> None:
        with contextlib.suppress(OSError):
            while (data := source.recv(65536)) and self._may_go_on(time.monotonic()):
                target.sendall(data)
        self.end()


def _without_login(command: Command) -> Command:
    if command.name != "HELLO" or len(command.words) < 3:
        return command
    words = list(command.words)
    for index, word in enumerate(words):
        if word.upper() == b"AUTH":
            del words[index : index + 3]
            break
    return Command(words, pack(*words))


def _bound() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


def _address(sock: socket.socket) -> tuple[str, int]:
    host, port = sock.getsockname()
    return host, port


# -- where redis-py connects -------------------------------------------------------------------

#: What has been replaced, to be put back: the class and its own method.
_replaced: dict[type[Any], Any] = {}

_NO_DETOUR: Final = staticmethod(GuardedConnection.detour)

#: Set in the threads of relays, which connect to where they lead.
_here = threading.local()


def _interpose() -> None:
    kind: type[Any]
    for name in _CLASSES:
        kind = getattr(redis.connection, name)
        _replaced[kind] = vars(kind)[_CONNECT]
        setattr(kind, _CONNECT, _detoured(_replaced[kind]))
    kind = redis.asyncio.connection.Connection
    _replaced[kind] = vars(kind)[_CONNECT]
    setattr(kind, _CONNECT, _detoured_async(_replaced[kind]))
    kind = redis.asyncio.connection.UnixDomainSocketConnection
    _replaced[kind] = vars(kind)[_CONNECT]
    setattr(kind, _CONNECT, _detoured_async_path(_replaced[kind]))
    GuardedConnection.detour = staticmethod(_detour_guarded)


def _forget_outlasted() -> None:
    """Take wires away that are needed no longer, and put back what they have replaced."""
    for wire in [wire for wire in _wires if not wire.is_needed]:
        _wires.remove(wire)
        wire.forget_all()
    if not _wires:
        _withdraw()


def _withdraw() -> None:
    for kind, original in _replaced.items():
        setattr(kind, _CONNECT, original)
    _replaced.clear()
    GuardedConnection.detour = _NO_DETOUR


def _led(connection: Any, connect: Callable[[], Any]) -> tuple[str, int] | None:
    """Return where a connection is made to instead, if a wire leads it."""
    if getattr(_here, "relays", False):
        return None
    for wire in reversed(_wires):
        address = wire.address_for(connection, connect)
        if address is not None:
            return address
    return None


def _detoured(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(original)
    def _connect(self: Any) -> Any:
        address = _led(self, functools.partial(original, self))
        if address is None:
            return original(self)
        sock = socket.create_connection(address, self.socket_connect_timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(self.socket_timeout)
        return sock

    return _connect


def _detoured_async(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(original)
    async def _connect(self: Any) -> None:
        address = _led(self, functools.partial(_connect_as, self._connection_arguments()))
        if address is None:
            await original(self)
            return
        # TLS ends here: the relay speaks it where there is one.
        self._connection_arguments = lambda: {"host": address[0], "port": address[1]}
        try:
            await original(self)
        finally:
            del self._connection_arguments

    return _connect


def _detoured_async_path(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(original)
    async def _connect(self: Any) -> None:
        address = _led(self, functools.partial(_connect_to, self.path, 10))
        if address is None:
            await original(self)
            return
        self._reader, self._writer = await asyncio.wait_for(
            asyncio.open_connection(*address), self.socket_connect_timeout
        )

    return _connect


def _connect_as(arguments: Any) -> Any:
    """Connect as asyncio would, for a relay's thread."""
    sock = socket.create_connection((arguments["host"], arguments["port"]), 10)
    context = arguments.get("ssl")
    if context is None:
        return sock
    return context.wrap_socket(sock, server_hostname=arguments["host"])


def _detour_guarded(connection: Any) -> list[Any] | None:
    address = _led(connection, functools.partial(_connect_guarded, connection))
    if address is None:
        return None
    return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)]


def _connect_guarded(connection: Any) -> Any:
    """Connect as the guard would, for a relay's thread."""
    seconds = connection.gate.timeout
    if hasattr(connection, "path"):
        return _connect_to(connection.path, seconds)
    sock = socket.create_connection((connection.host, connection.port), seconds)
    if not isinstance(connection, CertifiedConnection):
        return sock
    return connection.context.wrap_socket(sock, server_hostname=connection.host)


def _connect_to(path: str, seconds: float) -> socket.socket:
    """Connect to a socket in the file system, for a relay's thread."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(seconds)
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


# -- connections that are open already ---------------------------------------------------------


def _connections() -> list[Any]:
    """Return every connection of redis-py in this process, whosoever has it."""
    queue: list[type[Any]] = [
        redis.connection.AbstractConnection,
        redis.asyncio.connection.AbstractConnection,
    ]
    kinds = set(queue)
    while queue:
        found = [kind for kind in queue.pop().__subclasses__() if kind not in kinds]
        kinds.update(found)
        queue.extend(found)
    # By their type alone: asking a proxy for its class would load what it stands for.
    return [each for each in gc.get_objects() if type(each) in kinds]


def _hang_up(connection: Any) -> None:
    """Shut a connection's socket down: its next user connects anew, as after any hang-up."""
    sock = getattr(connection, "_sock", None)
    writer = getattr(connection, "_writer", None)
    if writer is not None:
        sock = writer.transport.get_extra_info("socket")
    elif not isinstance(sock, socket.socket | DeadlineSocket):
        return  # none, or that of an in-memory store
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
