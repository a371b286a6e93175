"""The Engine.IO connections under Flask-SocketIO, which it leaves to their clients' good will."""

from __future__ import annotations

import logging
import time
from typing import Any
from urllib.parse import parse_qs

from flask import Flask, request
from werkzeug.exceptions import HTTPException

from flask_redis_guard.core.process import Worker
from flask_redis_guard.errors import GuardError, RedisUnavailable
from flask_redis_guard.runtime import of
from flask_redis_guard.web.limits.declared import Limit, OnOutage, Rates
from flask_redis_guard.web.limits.enforce import enforce
from flask_redis_guard.web.limits.subjects import Key
from flask_redis_guard.web.websockets.pacing import PacedSocket
from flask_redis_guard.web.websockets.policy import announce_outage

logger = logging.getLogger("flask_redis_guard")

#: Seconds between two looks at the connections. One that was in no namespace at both is closed, as
#: servers in JavaScript do (``connectTimeout``, which is 45 s there).
CONNECT_GRACE = 5.0


def protect(server: Any) -> None:
    """Bound what a client can hold of a server, from now on.

    Engine.IO's handshake comes before any limit is asked, and a refusal leaves it open.

    :param server: a ``socketio.Server``.
    """
    server.packet_class = _bounded_packets(server.packet_class, server.eio.max_http_buffer_size)
    # The others bring greenlets of their own, whether or not the standard library is patched.
    if server.eio.async_mode == "threading":
        drivers = server.eio._async  # one for all servers of the process
        server.eio._async = {**drivers, "websocket": _paced(drivers["websocket"])}
    watch = _Watch(server)
    connect = server.eio.handlers["connect"]

    def connect_watched(eio_sid: str, environ: dict[str, Any]) -> Any:
        watch.start()
        return connect(eio_sid, environ)

    server.eio.on("connect", connect_watched)
    watch.start()


def limit_handshakes(
    app: Flask,
    rates: Rates,
    *,
    key: Key = None,
    scope: str | None = None,
    on_outage: OnOutage = "deny",
    shadow: bool = False,
) -> None:
    """Limit the handshakes of Engine.IO, which come before any namespace; after ``SocketIO(app)``.

    A refused client sees 429, or 503 without Redis, and nothing is kept of it.

    :param app: the app, whose ``wsgi_app`` is wrapped.
    :param rates: as for :func:`.rate_limited`.
    :param key: who is counted, as for :func:`.rate_limited`.
    :param scope: apps with the same scope, limits and subject share their counts.
    :param on_outage: without Redis: ``"deny"``, ``"local"`` or ``"allow"``.
    :param shadow: count and announce, but refuse nothing.
    :raises ConfigurationError: for an argument that cannot be honoured.
    :raises GuardError: if there is no Flask-SocketIO in the app yet.
    """
    if "socketio" not in app.extensions:
        raise GuardError("limit_handshakes comes after SocketIO(app) or socketio.init_app(app)")
    limit = Limit.declare(rates, key=key, scope=scope, on_outage=on_outage, shadow=shadow)
    socketio = app.extensions["socketio"]
    path = socketio.sockio_mw.engineio_path
    handshake_limits(socketio.server).append((path, limit))
    inner = app.wsgi_app

    def wsgi_app(environ: dict[str, Any], start_response: Any) -> Any:
        asked = environ.get("PATH_INFO", "").startswith(path)
        # As Engine.IO itself tells a handshake from what belongs to a connection.
        if asked and "sid" not in parse_qs(environ.get("QUERY_STRING", "")):
            try:
                with app.request_context(environ):
                    warn_of_proxy(of(app).warned)
                    enforce([(limit, "socketio:handshake")])
            except HTTPException as error:  # also what a key function aborts with
                if isinstance(error, RedisUnavailable):
                    announce_outage(of(app), error, None)
                return error.get_response(environ)(environ, start_response)
        return inner(environ, start_response)

    vars(app)["wsgi_app"] = wsgi_app


def handshake_limits(server: Any) -> list[tuple[str, Limit]]:
    """Return the limits of a server's handshakes, each with its path.

    :param server: a ``socketio.Server``.
    """
    known: list[tuple[str, Limit]] = vars(server).setdefault("redis_guard_handshakes", [])
    return known


def warn_of_proxy(told: set[str]) -> None:
    """Warn once where Socket.IO counts a proxy instead of its clients.

    :param told: what was warned of already.
    """
    # A proxy that is trusted below Socket.IO is so for Flask alone.
    forwarded = "X-Forwarded-For" in request.headers or "Forwarded" in request.headers
    if forwarded and "werkzeug.proxy_fix.orig" not in request.environ and "socketio" not in told:
        told.add("socketio")
        logger.warning(
            "A Socket.IO client is named in X-Forwarded-For or Forwarded, which is not trusted: if "
            "a proxy of yours sets it, all its clients share one limit; apply werkzeug's ProxyFix "
            "to app.wsgi_app after SocketIO(app) and limit_handshakes()."
        )


class _Watch:
    """Closes connections that are in no namespace, in one thread as long as there are any at all.

    :param server: a ``socketio.Server``.
    """

    def __init__(self, server: Any) -> None:
        self._manager, self._eio = server.manager, server.eio
        self._worker = Worker("redis-guard-engine", self._turn)
        self._before: set[str] = set()
        self._look_at = 0.0

    def start(self) -> None:
        """Watch, if that is not done already."""
        self._worker.wake()

    def _turn(self) -> float | None:
        if not self._eio.sockets:
            return None
        now = time.monotonic()
        if now >= self._look_at:  # else it was woken by another connection
            self._look_at = now + CONNECT_GRACE
            bare = {sid for sid in list(self._eio.sockets) if not self._in_a_namespace(sid)}
            for sid in self._before & bare:
                try:
                    self._close(sid)
                except Exception:
                    logger.exception("An Engine.IO connection without a namespace stays open")
            self._before = bare
        return self._look_at - now

    def _in_a_namespace(self, eio_sid: str) -> bool:
        names = list(self._manager.get_namespaces())
        return any(self._manager.sid_from_eio_sid(eio_sid, name) is not None for name in names)

    def _close(self, eio_sid: str) -> None:
        connection = self._eio.sockets.pop(eio_sid, None)
        if connection is not None:
            # disconnect() would wait until the client has fetched everything.
            connection.close(wait=False)


def _paced(driver: Any) -> Any:
    """Return the WebSockets of an Engine.IO server, on a :class:`PacedSocket`.

    :param driver: Engine.IO's class for connections of ``simple_websocket``.
    """

    class Paced(driver):  # type: ignore[misc]
        def __init__(self, handler: Any, server: Any, **options: Any) -> None:
            super().__init__(self._serve, server, **options)
            self._handler = handler
            # Engine.IO itself looks at the size of a message once it has all of it.
            self.server_args.setdefault("max_message_size", server.max_http_buffer_size)

        def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
            PacedSocket.put_under(environ)
            return super().__call__(environ, start_response)

        def _serve(self, _: Any) -> Any:
            self._paced = PacedSocket.of(self.ws)
            return self._handler(self)

        def wait(self) -> Any:
            message = super().wait()
            self._paced.read_on()
            return message

        def close(self) -> None:
            try:
                super().close()
            finally:
                self._paced.linger()

    return Paced


def _bounded_packets(packet_class: Any, largest: int) -> Any:
    """Return a class of packets whose attachments together are no larger than one may be.

    :param packet_class: a class of ``socketio`` packets.
    :param largest: bytes.
    """

    class Bounded(packet_class):  # type: ignore[misc]
        size = 0

        def add_attachment(self, attachment: Any) -> Any:
            self.size += max(1, len(attachment))
            if self.size > largest:
                self.attachments.clear()
                raise ValueError("the attachments of a packet are too large")
            return super().add_attachment(attachment)

    return Bounded
