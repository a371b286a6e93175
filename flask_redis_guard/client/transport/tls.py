"""TLS connections that read their certificates once, not each time they connect."""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Callable
from typing import Any, ClassVar

from redis.connection import SSLConnection

from flask_redis_guard.client.transport.sockets import timed


class CertifiedConnection(SSLConnection):
    """A TLS connection whose class keeps the ``SSLContext``.

    redis-py makes one for every connection, from all certificates that the system trusts: CPU time
    that no deadline bounds, for each connection when all come back after an outage.
    """

    _left: Callable[[], float]
    #: Of which files, and the context; a client's connections have a class of their own.
    _certified: ClassVar[tuple[list[object], ssl.SSLContext] | None] = None

    def _connect(self) -> Any:
        files, certified = self._files(), type(self)._certified
        if certified is None or certified[0] != files:
            sock: Any = super()._connect()
            if not (self.ssl_validate_ocsp or self.ssl_validate_ocsp_stapled):
                type(self)._certified = files, sock.context
            return sock
        sock = timed(super(SSLConnection, self)._connect(), self._left)
        try:
            return certified[1].wrap_socket(sock, server_hostname=self.host)
        except BaseException:
            sock.close()
            raise

    def _files(self) -> list[object]:
        """Return what changes when a certificate was replaced, as it is before it expires."""
        found: list[object] = []
        for path in (self.certfile, self.keyfile, self.ca_certs, self.ca_path):
            with contextlib.suppress(OSError, TypeError):  # none, or not there: redis-py says so
                found.append((path, os.stat(path).st_mtime_ns))
        return found

    def _wrap_socket_with_ssl(self, sock: Any) -> Any:
        # Where redis-py makes the context: what is left for the handshake is known only when
        # that is done.
        sock = timed(sock, self._left)
        try:
            return super()._wrap_socket_with_ssl(sock)
        except BaseException:
            sock.close()
            raise
