"""A socket that keeps to its operation's deadline, whatever the server does.

redis-py sets a timeout for each ``recv``, so a server that sends one byte at a time can keep a
caller for ever. Here every single wait gets what is left of the operation's deadline.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from flask_redis_guard.client.operation import INFINITE, Operation


class DeadlineSocket:
    """Wrap a connected socket; everything not defined here is the socket's own.

    :param sock: a TCP, TLS or unix socket.
    :param default: seconds a single wait may take outside an operation.
    :param operation: tells the operation in progress on this connection.
    """

    def __init__(
        self, sock: Any, default: float, operation: Callable[[], Operation | None]
    ) -> None:
        self._sock = sock
        self._default: float | None = default
        self._wanted: float | None = default  # what redis-py asked for: poll (0), pub/sub (None)
        self._operation = operation
        self._tls = hasattr(sock, "pending")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def settimeout(self, seconds: float | None) -> None:
        """Remember what redis-py asks for; it counts where no operation's deadline is nearer."""
        self._wanted = seconds

    def _patience(self) -> float | None:
        operation = self._operation()
        if operation is None:
            return self._wanted
        left = operation.remaining()
        if self._wanted is not None and self._wanted != self._default:
            left = min(left, self._wanted)
        elif left <= 0:
            raise TimeoutError("the operation's deadline has passed")
        return None if left == INFINITE else max(left, 0.0)

    def recv(self, *args: Any) -> bytes:
        return self._receive(self._sock.recv, *args)  # type: ignore[no-any-return]

    def recv_into(self, *args: Any) -> int:
        return self._receive(self._sock.recv_into, *args)  # type: ignore[no-any-return]

    def _receive(self, method: Callable[..., Any], *args: Any) -> Any:
        try:
            return self._call(method, *args)
        except TimeoutError:
            # Perhaps it was not Redis who was late, but this greenlet's or thread's turn.
            operation = self._operation()
            if operation is None or not operation.may_read_late():
                raise
            self._sock.settimeout(0)
            try:
                return method(*args)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass
            raise

    def sendall(self, data: Any) -> None:
        """Send everything before the deadline."""
        if not self._tls:
            self._sock.settimeout(self._patience())
            self._sock.sendall(data)  # bounded as a whole by the timeout
            return
        view = memoryview(data).cast("B")
        while view:
            view = view[self._call(self._sock.send, view) :]

    def _call(self, method: Callable[..., Any], *args: Any) -> Any:
        if not self._tls:
            self._sock.settimeout(self._patience())
            return method(*args)
        # One TLS record can take many reads of the socket below, and gevent would give each of
        # them the whole timeout: so the waiting is done here.
        self._sock.settimeout(0)
        while True:
            try:
                return method(*args)
            except ssl.SSLWantReadError:
                if not self._ready(select.POLLIN):
                    raise  # redis-py polls so: it goes by the number of this very error
            except ssl.SSLWantWriteError:
                if not self._ready(select.POLLOUT):
                    raise

    def _ready(self, event: int) -> bool:
        """Wait for the socket; false where redis-py only wants to know about now.

        :raises TimeoutError: when the deadline has passed.
        """
        seconds = self._patience()
        if seconds == 0:
            return False
        poller = select.poll()
        poller.register(self._sock, event)
        if not poller.poll(None if seconds is None else seconds * 1000):
            raise TimeoutError("the operation's deadline has passed")
        return True


class _TimedSocket(socket.socket):
    """A socket whose timeout is what is left at the moment it is looked at."""

    remaining: Callable[[], float]

    def gettimeout(self) -> float:
        # Raising here would leave two objects with one descriptor.
        return max(0.001, self.remaining())


def timed(sock: Any, remaining: Callable[[], float]) -> Any:
    """Return the socket such that :mod:`ssl` bounds a handshake by what is left when it begins.

    :param sock: a connected socket; its descriptor changes hands.
    :param remaining: tells the seconds left.
    """
    if type(sock).__module__ != "socket":
        return sock  # gevent's, where connecting is bounded as a whole
    clocked = _TimedSocket(fileno=sock.detach())
    clocked.remaining = remaining
    return clocked


def bounded(seconds: float) -> AbstractContextManager[object]:
    """Bound connecting as a whole under gevent: name resolution and the TLS handshake too.

    With threads CPython bounds the handshake itself by the socket's timeout, and nothing can
    bound the resolver.

    :param seconds: after which :exc:`TimeoutError` is raised.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("socket"):
        return contextlib.nullcontext()
    timeout = sys.modules["gevent"].Timeout
    return timeout(max(seconds, 0), TimeoutError("connecting took too long"))  # type: ignore[no-any-return]
