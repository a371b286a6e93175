"""The socket under a connection of ``simple_websocket``: read at the pace of its handler."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

#: Messages that a handler has not asked for yet, at which nothing more is read from the client.
#: What ``websockets`` takes as well (``max_queue``).
MAX_UNREAD = 16

#: Seconds that a client has to answer a close frame before its connection is cut.
CLOSE_GRACE = 1.0

#: Seconds that a client may leave what it is sent untaken, unless ``ping_interval`` says it.
SEND_GRACE = 25


class PacedSocket:
    """In the place of a connection's socket: reads at the pace of the handler.

    ``simple_websocket`` reads in a thread of its own, which keeps messages without a bound while
    the handler is busy, and which under gevent runs alone as long as a client sends faster than it
    reads. Paused, it leaves the rest with the client, as TCP does. All else is the socket's own.

    :param sock: the socket.
    """

    def __init__(self, sock: Any) -> None:
        self._socket = sock
        self._ws: Any = None
        self._asked = threading.Event()
        self._cut = False

    @classmethod
    def of(cls, ws: Any) -> PacedSocket:
        """Return that of a connection, which it paces from now on.

        :param ws: a ``simple_websocket.Server``.
        """
        paced = ws.sock if isinstance(ws.sock, cls) else cls(ws.sock)
        paced._ws = ws
        paced._bound_sending()
        ws.sock = paced
        return paced

    @classmethod
    def put_under(cls, environ: dict[str, Any]) -> None:
        """Replace the socket that a request may be upgraded on, before its first byte is read.

        :param environ: of the request, from a server that ``simple_websocket`` knows.
        """
        for name in ("werkzeug.socket", "gunicorn.socket"):
            if name in environ:
                environ[name] = cls(environ[name])
                return
        if str(environ.get("SERVER_SOFTWARE")).startswith("gevent"):
            environ["wsgi.input"] = _Input(environ["wsgi.input"])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def dup(self) -> PacedSocket:
        """Return one for a copy of the socket."""
        return type(self)(self._socket.dup())

    def recv(self, size: int) -> bytes:
        """Read, once the handler has come near what was read before."""
        time.sleep(0)  # a greenlet that always finds something to read lets no other run
        self._asked.clear()
        while not self._cut and self._ws is not None and len(self._ws.input_buffer) >= MAX_UNREAD:
            self._asked.wait()
            self._asked.clear()
            # What answers the last ping may be among what was left with the client.
            self._ws.pong_received = True
        received: bytes = self._socket.recv(size)
        return received

    def close(self) -> None:
        """Close it, which is the last that the reader does, and wake the handler.

        The reader of ``simple_websocket`` signals a message that is too large before it marks the
        connection closed: a handler that is quick looks in between, and would wait for ever.
        """
        try:
            self._socket.close()
        finally:
            if self._ws is not None:
                self._ws.connected = False
                self._ws.event.set()

    def send(self, data: bytes) -> int:
        """Send all of it: under gevent a socket sends what fits, and the caller asks for no more.

        :returns: how many bytes that was.
        """
        self._socket.sendall(data)
        return len(data)

    def read_on(self) -> None:
        """Look again whether to read: the handler has taken a message, or takes none any more."""
        self._asked.set()

    def send_at_once(self, frame: bytes) -> None:
        """Send a small frame, or fail if that would mean to wait.

        :raises OSError: if the client does not take what was sent before.
        """
        if isinstance(self._socket, ssl.SSLSocket):  # knows no such flag
            self._socket.send(frame)
        else:
            # gevent's own socket waits whatever the flag; and its selectors, asked not to wait, may
            # say that nothing is ready without having looked.
            getattr(self._socket, "_sock", self._socket).send(frame, socket.MSG_DONTWAIT)

    def linger(self) -> None:
        """Let the client answer the close frame, but not for long; then end the reader's thread."""
        self._ws.thread.join(CLOSE_GRACE)
        if self._ws.thread.is_alive():
            self.cut()
            self._ws.thread.join(CLOSE_GRACE)

    def cut(self) -> None:
        """End the connection, whatever the client does."""
        self._cut = True
        self.read_on()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _bound_sending(self) -> None:
        """Let the kernel end a connection whose client takes nothing, so that no sender hangs.

        Pings do not find such a client: they wait behind what it does not take. See
        ``TCP_USER_TIMEOUT`` in tcp(7), in milliseconds.
        """
        seconds = self._ws.ping_interval or SEND_GRACE
        with suppress(AttributeError, OSError):  # another platform; a unix socket
            self._socket.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000)
            )


class _Input:
    """In the place of ``wsgi.input`` of gevent's server, in which ``simple_websocket`` looks."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    @property
    def raw(self) -> Any:
        source = self._source
        raw = source.raw if hasattr(source, "raw") else source.rfile.raw
        return SimpleNamespace(_sock=PacedSocket(raw._sock))
