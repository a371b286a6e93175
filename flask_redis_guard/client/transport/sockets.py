"""A socket that keeps to its operation's time, whatever the server does.

redis-py sets a timeout for each ``recv``, so a server that sends one byte at a time can keep a
caller for ever. Here every single wait is taken off what its operation may wait in all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl
import sys
from collections.abc import Callable, Generator, Iterator
from time import monotonic
from typing import Any

from flask_redis_guard.client.operation import Operation

#: What a step of connecting waits for: a socket and an event of :func:`select.poll`.
Step = tuple[Any, int]

_UNDER_WAY = (errno.EINPROGRESS, errno.EWOULDBLOCK)
#: What a socket that does not wait raises where there is nothing to be done now.
NOT_READY = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class DeadlineSocket:
    """Wrap a connected socket; everything not defined here is the socket's own.

    :param sock: a TCP, TLS or unix socket.
    :param default: seconds a single wait may take outside an operation.
    :param part: seconds that a single wait inside an operation takes before it is looked at.
    """

    def __init__(self, sock: Any, default: float, part: float) -> None:
        self._sock = sock
        self._default: float | None = default
        self._wanted: float | None = default  # what redis-py asked for: poll (0), pub/sub (None)
        #: The operation that sent last; none is in progress once it has ended.
        self.operation: Operation | None = None
        self._tls = hasattr(sock, "pending")
        self._part = part
        sock.settimeout(0 if self._tls else part)
        #: The socket's own methods, which wait for one part at most.
        self.send, self.receive, self._receive_into = sock.send, sock.recv, sock.recv_into

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    @contextlib.contextmanager
    def never_waiting(self) -> Iterator[Any]:
        """Give the socket below, whose calls either succeed at once or raise.

        Under gevent it is the one below gevent's: where that waits, an exception of a signal
        handler could lose what was received. With TLS it is the one that encrypts.
        """
        if self._tls:
            yield self._sock
            return
        self._sock.settimeout(0)
        try:
            yield getattr(self._sock, "_sock", self._sock)
        finally:
            if self._sock.fileno() >= 0:
                self._sock.settimeout(self._part)

    def settimeout(self, seconds: float | None) -> None:
        """Remember what redis-py asks for; it counts where no operation's time is up sooner."""
        self._wanted = seconds

    def recv(self, *args: Any) -> bytes:
        return self._receive(self.receive, *args)  # type: ignore[no-any-return]

    def recv_into(self, *args: Any) -> int:
        return self._receive(self._receive_into, *args)  # type: ignore[no-any-return]

    def go_on_receiving(self, operation: Operation | None = None, began: float = 0) -> bytes:
        """Go on after :attr:`receive` had nothing yet.

        :param operation: whose wait has ended without anything, if that was one.
        :param began: when that wait began.
        """
        if operation is not None:
            operation.count(began, self._part)
        return self._patiently(self.receive, select.POLLIN, 65536)  # type: ignore[no-any-return]

    def _receive(self, method: Callable[..., Any], *args: Any) -> Any:
        operation = self.operation
        if operation is None or operation.settled or self._wanted != self._default:
            return self._patiently(method, select.POLLIN, *args)
        began, part = monotonic(), self._part
        if began - operation.started > operation.allowance and not operation.may_read(began):
            raise TimeoutError("the operation's time is used up")
        try:
            received = method(*args)  # which waits for one part, the first of this operation's
        except TimeoutError:
            operation.count(began, part)
        except NOT_READY:
            pass
        else:
            elapsed = monotonic() - began
            operation.waited += elapsed if elapsed < part else part  # noqa: FURB136 - a call less
            return received
        return self._patiently(method, select.POLLIN, *args)

    def sendall(self, data: Any) -> None:
        """Send everything before the time is used up."""
        try:
            sent = self.send(data)
        except (TimeoutError, *NOT_READY):
            sent = 0
        except BaseException:
            del data  # it may hold a password, and error trackers collect variables
            raise
        if sent != len(data):
            view = memoryview(data).cast("B")[sent:]
            del data
            self.send_rest(view)

    def send_rest(self, view: memoryview) -> None:
        """Send what :attr:`send` has left."""
        while view:
            view = view[self._patiently(self.send, select.POLLOUT, view) :]

    def _patiently(self, method: Callable[..., Any], event: int, *args: Any) -> Any:
        """Call a method that does not wait as often as it takes."""
        self._sock.settimeout(0)
        try:
            while True:
                try:
                    return method(*args)
                except NOT_READY as exc:
                    if isinstance(exc, ssl.SSLError):
                        wants_write = isinstance(exc, ssl.SSLWantWriteError)
                        event = select.POLLOUT if wants_write else select.POLLIN
                    if not self._wait(event):
                        raise  # redis-py polls so: it goes by the number of this very error
        finally:
            if not self._tls and self._sock.fileno() >= 0:
                self._sock.settimeout(self._part)

    def _wait(self, event: int) -> bool:
        """Wait for the socket; false where redis-py only wants to know about now.

        :raises TimeoutError: when the time is used up.
        """
        operation, wanted = self.operation, self._wanted
        if wanted == 0:
            return False
        if operation is None or operation.settled:
            done = is_ready(self._sock, event, wanted)
        elif wanted == self._default or wanted is None:
            done = operation.wait(lambda seconds: is_ready(self._sock, event, seconds))
        else:
            done = is_ready(self._sock, event, min(wanted, max(0.0, operation.remaining())))
        if not done:
            raise TimeoutError("the operation's time is used up")
        return True


def is_ready(sock: Any, event: int, seconds: float | None) -> bool:
    """Wait until a socket is ready.

    :param sock: the socket.
    :param event: for what, as of :func:`select.poll`.
    :param seconds: at most; ``None`` for ever.
    """
    if sock.fileno() < 0:
        raise OSError(errno.EBADF, "closed meanwhile")
    poller = select.poll()
    poller.register(sock, event)
    return bool(poller.poll(None if seconds is None else seconds * 1000))


def native_poll(sock: Any) -> Callable[[int], list[Any]]:
    """Return what tells whether a socket can be read now, without waiting.

    :param sock: the socket.
    """
    monkey = sys.modules.get("gevent.monkey")
    made = select.poll if monkey is None else monkey.get_original("select", "poll")
    poller = made()
    poller.register(sock, select.POLLIN)
    poll: Callable[[int], list[Any]] = poller.poll
    pending = getattr(sock, "pending", None)  # what TLS has taken from the socket already
    return poll if pending is None else lambda milliseconds: pending() or poll(milliseconds)


def dial(
    addresses: list[Any], prepare: Callable[[Any], None]
) -> Generator[Step, None, socket.socket]:
    """Connect to the first address that answers, in steps.

    The generator yields what it waits for, so that the next caller can go on where the last
    caller's time was used up.

    :param addresses: as :func:`socket.getaddrinfo` gives them.
    :param prepare: sets options of a socket before it connects.
    :returns: a connected socket that does not block.
    :raises OSError: the last address's, if none answers.
    """
    failure: OSError = OSError("the name has no address")
    for family, kind, protocol, _, address in addresses:
        sock = socket.socket(family, kind, protocol)
        try:
            prepare(sock)
            sock.setblocking(False)
            code = sock.connect_ex(address)
            if code in _UNDER_WAY:
                yield sock, select.POLLOUT
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
        except OSError as exc:
            sock.close()
            failure = exc
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


def encrypt(sock: Any, context: ssl.SSLContext, name: str) -> Generator[Step, None, Any]:
    """Speak TLS on a connected socket that does not block, in steps.

    :param sock: the socket; it is closed if this fails.
    :param context: the certificates.
    :param name: whom the server's certificate must name.
    """
    try:
        sock = context.wrap_socket(sock, server_hostname=name, do_handshake_on_connect=False)
        while True:
            try:
                sock.do_handshake()
            except ssl.SSLWantReadError:
                yield sock, select.POLLIN
            except ssl.SSLWantWriteError:
                yield sock, select.POLLOUT
            else:
                return sock
    except BaseException:
        sock.close()
        raise
