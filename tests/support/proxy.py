"""A TCP proxy before a real server that cuts, hangs, delays and drips on command."""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Literal

import trustme

from tests.support.faults import LoopbackServer

# SO_LINGER on, zero seconds: close() sends RST instead of FIN.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Proxy(LoopbackServer):
    """Forwards to a port of 127.0.0.1; the commands below act on all its connections at once.

    :param target_port: where the real server listens.
    :param tls: speak TLS to the client, with a certificate for ``localhost`` and ``127.0.0.1``
        signed by the authority in :attr:`ca_file` (a server built without TLS will do then).
    """

    def __init__(self, target_port: int, *, tls: TLSIdentity | None = None) -> None:
        self.target_port = target_port
        self.tls = tls
        self._changed = threading.Condition()
        self._links: set[_Link] = set()
        self._hanging = False
        self._delay = 0.0
        self._drip = 0.0
        self._reply_budget: int | None = None
        self._then: Literal["cut", "hang"] = "cut"
        self._garbage = b""
        self._noise = b""
        self._swallowing = False
        self._failing = 0.0
        self._unwanted = b""
        self._portion: tuple[int, int] | None = None
        super().__init__()

    @property
    def url(self) -> str:
        """``redis://`` or, with TLS, ``rediss://`` URL of database 0."""
        if self.tls is None:
            return super().url
        return f"rediss://127.0.0.1:{self.port}/0?ssl_ca_certs={self.tls.ca_file}"

    @property
    def open(self) -> int:
        """How many connections are forwarded now."""
        with self._changed:
            return len(self._links)

    def cut(self) -> None:
        """Reset every connection (RST to both sides); new ones are forwarded."""
        with self._changed:
            links = list(self._links)
            for link in links:
                link.end()
            self._changed.notify_all()
            # Back with the caller only when the sockets are closed.
            self._changed.wait_for(lambda: not self._links.intersection(links), 5)

    def hang(self) -> None:
        """Forward nothing more, neither way, but keep every socket open and go on accepting."""
        self._set(_hanging=True)

    def delay(self, seconds: float) -> None:
        """Forward everything that much later."""
        self._set(_delay=seconds)

    def drip(self, interval: float) -> None:
        """Forward replies one byte at a time, ``interval`` seconds before each."""
        self._set(_drip=interval)

    def cut_after(self, count: int) -> None:
        """Forward ``count`` more bytes of replies, then reset the connection they came on."""
        self._set(_reply_budget=count, _then="cut")

    def hang_after(self, count: int) -> None:
        """Forward ``count`` more bytes of replies, then hang."""
        self._set(_reply_budget=count, _then="hang")

    def garble(self, garbage: bytes) -> None:
        """Forward this instead of what the server sends next, on one connection."""
        self._set(_garbage=garbage)

    def garble_all(self, noise: bytes) -> None:
        """Forward this instead of everything that the server sends."""
        self._set(_noise=noise)

    def swallow(self) -> None:
        """Lose everything, either way, as a network does that drops each packet.

        Connections that lost something are reset by :meth:`resume`.
        """
        self._set(_swallowing=True)

    def fail_some(self, share: float) -> None:
        """Reset the connection instead of forwarding this share of what clients send."""
        self._set(_failing=share)

    def cut_on(self, word: bytes) -> None:
        """Reset the connection instead of forwarding what has a word in it, such as a command."""
        self._set(_unwanted=word)

    def cut_each(self, least: int, most: int) -> None:
        """Reset each connection after so many bytes of replies, another number for each."""
        self._set(_portion=(least, most))

    def resume(self) -> None:
        """Forward everything at once again, also what was held back while hanging."""
        self._set(_hanging=False, _delay=0.0, _drip=0.0, _reply_budget=None)
        self._set(_noise=b"", _failing=0.0, _unwanted=b"", _portion=None, _swallowing=False)
        with self._changed:
            for link in self._links:
                if link.lossy:
                    link.end()
            self._changed.notify_all()

    def disconnect(self) -> None:
        self.cut()
        super().disconnect()

    def handle(self, connection: socket.socket) -> None:
        if self.tls is not None:
            connection = self.tls.context.wrap_socket(connection, server_side=True)
        with connection, socket.create_connection(("127.0.0.1", self.target_port)) as upstream:
            upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(connection, upstream)
            with self._changed:
                self._links.add(link)
            try:
                self._forward(link)
            finally:
                link.close()
                with self._changed:
                    self._links.discard(link)
                    self._changed.notify_all()

    def _set(self, **values: object) -> None:
        with self._changed:
            vars(self).update(values)
            self._changed.notify_all()

    def _forward(self, link: _Link) -> None:
        while not link.ended and not self.closing.is_set():
            for source in link.readable():
                link.receive(source, self._delay)
            for source, data in link.due():
                if not data:
                    self._pass_gate(link)
                    return
                self._pass_on(link, source, data)

    def _pass_on(self, link: _Link, source: socket.socket, data: bytes) -> None:
        if self._swallowing:
            link.lossy = True
        elif source is link.upstream:
            self._send_reply(link, data)
        elif random.random() < self._failing or (self._unwanted and self._unwanted in data):
            link.ended = True
        elif self._pass_gate(link):
            link.upstream.sendall(data)

    def _send_reply(self, link: _Link, data: bytes) -> None:
        with self._changed:
            data, self._garbage = self._noise or self._garbage or data, b""
        while data and self._pass_gate(link):
            with self._changed:
                size = len(data) if not self._drip else 1
                if self._reply_budget is not None:
                    size = min(size, self._reply_budget)
                    self._reply_budget -= size
                if self._portion is not None:
                    link.left = link.left or random.randint(*self._portion)
                    size = min(size, link.left)
                    link.left -= size
                drip = self._drip
                if size == 0:
                    self._reply_budget = None
                    self._hanging = self._then == "hang"
                    link.ended = link.ended or self._then == "cut"
                    continue
            if drip:
                self._pause(link, drip)
            link.client.sendall(data[:size])
            data = data[size:]
            if link.left == 0:
                link.ended = True

    def _pass_gate(self, link: _Link) -> bool:
        """Wait as told before something is forwarded; false if the link is to end instead."""
        with self._changed:
            self._changed.wait_for(lambda: not self._hanging or link.ended)
        return not link.ended

    def _pause(self, link: _Link, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: link.ended, seconds)


class _Link:
    """A client's connection and the one made for it to the server."""

    def __init__(self, client: socket.socket, upstream: socket.socket) -> None:
        self.client = client
        self.upstream = upstream
        self.ended = False
        self.lossy = False  # something of it was lost
        self.left: int | None = None  # bytes of replies until it is reset
        #: What was received and when it is to be forwarded: it is on its way meanwhile.
        self._held: deque[tuple[float, socket.socket, bytes]] = deque()
        self._wake, self._waker = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for source in (client, upstream, self._wake):
            self._selector.register(source, selectors.EVENT_READ)

    def readable(self) -> list[socket.socket]:
        """Wait until a side has something to read, something is due, or the link was ended."""
        if isinstance(self.client, ssl.SSLSocket) and self.client.pending():
            return [self.client]
        timeout = max(0.0, self._held[0][0] - time.monotonic()) if self._held else None
        ready = [key.fileobj for key, _ in self._selector.select(timeout)]
        return [source for source in (self.client, self.upstream) if source in ready]

    def receive(self, source: socket.socket, delay: float) -> None:
        """Take what a side has sent, to be forwarded so many seconds later."""
        data = source.recv(65_536)
        if not data:
            self._selector.unregister(source)
        self._held.append((time.monotonic() + delay, source, data))

    def due(self) -> Iterator[tuple[socket.socket, bytes]]:
        """What is to be forwarded by now; nothing where a side said its last is empty."""
        while self._held and self._held[0][0] <= time.monotonic():
            _, source, data = self._held.popleft()
            yield source, data

    def end(self) -> None:
        """Make the thread that forwards reset both connections."""
        self.ended = True
        with contextlib.suppress(OSError):
            self._waker.send(b"x")

    def close(self) -> None:
        """Close all sockets, with a reset if the link was ended on purpose."""
        self._selector.close()
        for side in (self.client, self.upstream):
            if self.ended:
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            side.close()
        self._wake.close()
        self._waker.close()


class TLSIdentity:
    """A certificate for ``localhost`` and ``127.0.0.1``, and the authority that signed it.

    :param directory: where :attr:`ca_file` is written.
    """

    def __init__(self, directory: str) -> None:
        authority = trustme.CA()
        self.ca_file = f"{directory}/ca.pem"
        authority.cert_pem.write_to_path(self.ca_file)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost", "127.0.0.1").configure_cert(self.context)
