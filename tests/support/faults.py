"""TCP peers that misbehave for real: silent, slow, stalling."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import TypeVar

from tests.support.ports import PortLease

_HANDSHAKE = frozenset({b"HELLO", b"AUTH", b"CLIENT", b"SELECT", b"READONLY"})
ServerT = TypeVar("ServerT", bound="LoopbackServer")


class LoopbackServer:
    """Accepts on a free loopback port and gives each connection a thread.

    Used as a context manager; :meth:`close` ends every thread and every connection.
    """

    def __init__(self) -> None:
        self.accepted = 0
        self.closing = threading.Event()
        self._lease = PortLease()
        self.port = self._lease.port
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.listen()

    def listen(self) -> None:
        """Accept connections, as from the beginning, or after :meth:`refuse`."""
        self._refusing = threading.Event()
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self.port))
        self._listener.listen(512)
        # Closing a listener does not wake the thread that accepts on it.
        self._listener.settimeout(0.05)
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def refuse(self) -> None:
        """Accept no connection any more, and end those that there are; the port stays ours."""
        self._refusing.set()
        self._acceptor.join()
        self._listener.close()
        self.disconnect()

    @property
    def url(self) -> str:
        """``redis://`` URL of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def handle(self, connection: socket.socket) -> None:
        """Serve one connection; runs in its own thread. An ``OSError`` ends it."""
        raise NotImplementedError

    def close(self) -> None:
        """Close everything and wait until every thread has ended."""
        self.closing.set()
        self._acceptor.join()
        self._listener.close()
        self.disconnect()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), f"{type(self).__name__} left a thread"
        self._lease.release()

    def disconnect(self) -> None:
        """Make every connection's thread see the end of its connection."""
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self: ServerT) -> ServerT:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while not (self.closing.is_set() or self._refusing.is_set()):
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            connection.settimeout(None)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            with self._lock:
                self.accepted += 1
                self._connections.add(connection)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError):
                self.handle(connection)
        finally:
            with self._lock:
                self._connections.discard(connection)
                connection.close()


class SilentServer(LoopbackServer):
    """Accepts, reads, and never says a word; over TLS it stalls the handshake."""

    def handle(self, connection: socket.socket) -> None:
        while connection.recv(65_536):
            pass


class DrippingServer(LoopbackServer):
    """Answers every command with a valid reply, one byte at a time.

    :param interval: seconds before each byte.
    :param drip_handshake: also drip the replies to ``HELLO``, ``AUTH``, ``CLIENT`` and
        ``SELECT``; otherwise they come at once and the first real command is the slow one.
    """

    def __init__(self, interval: float = 0.4, *, drip_handshake: bool = True) -> None:
        self.interval = interval
        self.drip_handshake = drip_handshake
        super().__init__()

    def handle(self, connection: socket.socket) -> None:
        for command in read_commands(connection):
            reply = reply_to(command)
            if command[0].upper() in _HANDSHAKE and not self.drip_handshake:
                connection.sendall(reply)
                continue
            for index in range(len(reply)):
                if self.closing.wait(self.interval):
                    return
                connection.sendall(reply[index : index + 1])


class HandshakeStaller(LoopbackServer):
    """Answers the first commands of a connection and falls silent for ever.

    :param replies: how many commands it answers; 1 stalls a handshake after ``HELLO`` or its
        first ``AUTH`` / ``CLIENT`` / ``SELECT``.
    """

    def __init__(self, replies: int = 1) -> None:
        self.replies = replies
        super().__init__()

    def handle(self, connection: socket.socket) -> None:
        for number, command in enumerate(read_commands(connection)):
            if number < self.replies:
                connection.sendall(reply_to(command))


class MalformedServer(LoopbackServer):
    """Answers the handshake, and every other command with what is no RESP.

    :param reply: what it says.
    """

    def __init__(self, reply: bytes) -> None:
        self.reply = reply
        super().__init__()

    def handle(self, connection: socket.socket) -> None:
        for command in read_commands(connection):
            handshake = command[0].upper() in _HANDSHAKE
            connection.sendall(reply_to(command) if handshake else self.reply)


def read_commands(connection: socket.socket) -> Iterator[list[bytes]]:
    """The commands a client sends, each as its list of words, until it hangs up."""
    with connection.makefile("rb") as stream:
        while header := stream.readline():
            words = []
            for _ in range(int(header[1:])):
                length = int(stream.readline()[1:])
                words.append(stream.read(length + 2)[:-2])
            yield words


def reply_to(command: list[bytes]) -> bytes:
    """A reply a client accepts for a command: its echo, a greeting, ``PONG`` or ``OK``."""
    name = command[0].upper()
    if name == b"HELLO":
        facts = {b"server": b"$5\r\nredis\r\n", b"version": b"$5\r\n7.4.0\r\n"}
        version = int(command[1]) if len(command) > 1 else 2
        facts[b"proto"] = b":%d\r\n" % version
        head = b"%%%d\r\n" % len(facts) if version == 3 else b"*%d\r\n" % (2 * len(facts))
        return head + b"".join(
            b"$%d\r\n%s\r\n%s" % (len(key), key, value) for key, value in facts.items()
        )
    if name == b"ECHO":
        return b"$%d\r\n%s\r\n" % (len(command[1]), command[1])
    return b"+PONG\r\n" if name == b"PING" else b"+OK\r\n"
