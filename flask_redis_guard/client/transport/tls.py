"""TLS connections that read their certificates once, not each time they connect."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Generator
from typing import Any, ClassVar

from redis.connection import Connection, SSLConnection

from flask_redis_guard.client.transport.sockets import Step, encrypt


class _Unconnected(Connection):
    """What stands between redis-py's two classes: it hands the one the socket that we have."""

    _given: Any = None

    def _connect(self) -> Any:
        given, self._given = self._given, None
        return given


class CertifiedConnection(SSLConnection, _Unconnected):
    """A TLS connection whose class keeps the ``SSLContext``.

    redis-py makes one for every connection, from all certificates that the system trusts: CPU time
    for each connection when all come back after an outage.
    """

    #: Of which files, and the context; a client's connections have a class of their own.
    _certified: ClassVar[tuple[list[object], ssl.SSLContext] | None] = None

    def secure(self, sock: Any, seconds: float) -> Generator[Step, None, Any]:
        """Speak TLS on a connected socket, in steps.

        :param sock: the socket.
        :param seconds: for each wait in a check by OCSP, which redis-py makes in one step.
        """
        if self.ssl_validate_ocsp or self.ssl_validate_ocsp_stapled:
            try:
                sock.settimeout(seconds)
                secured = self._wrapped(sock)
                secured.settimeout(0)
            except BaseException:
                sock.close()
                raise
            return secured
        return (yield from encrypt(sock, self.context, self.host))

    @property
    def context(self) -> ssl.SSLContext:
        """The certificates, read again if a file of theirs has changed."""
        files, certified = self._files(), type(self)._certified
        if certified is None or certified[0] != files:
            # redis-py makes it in the middle of connecting: a socket that leads nowhere will do.
            with self._wrapped(socket.socket()) as unconnected:
                certified = type(self)._certified = files, unconnected.context
        return certified[1]

    def _wrapped(self, sock: Any) -> Any:
        self._given = sock
        return SSLConnection._connect(self)

    def _files(self) -> list[object]:
        """Return what changes when a certificate was replaced, as it is before it expires."""
        found: list[object] = []
        for path in (self.certfile, self.keyfile, self.ca_certs, self.ca_path):
            with contextlib.suppress(OSError, TypeError):  # none, or not there: redis-py says so
                found.append((path, os.stat(path).st_mtime_ns))
        return found
