"""The application that has every feature as a route, and what a process of it holds."""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flask import Flask, Response, jsonify, request
from flask_sock import Sock

from flask_redis_guard import (
    Alert,
    GuardedSessionInterface,
    RedisGuard,
    circuit_state_changed,
    rate_limited,
    session,
    websocket_limited,
)
from flask_redis_guard.client.transport.pool import GuardedPool

#: Admissions of one subject, and the rate that no load exceeds within a run.
LIMIT = 4
RATE = f"{LIMIT}/hour"

#: In a response: how long the app took for it, in milliseconds, without any time in a queue.
TOOK = "X-Took"

#: The file to which a process writes what it was told: alerts and transitions.
NOTES = "MATRIX_NOTES"


def make_app() -> Flask:
    """Return the application; the environment says where Redis is."""
    app = Flask("matrix")
    app.config["SECRET_KEY"] = "of the matrix"
    app.config["REDIS_GUARD_ALERT_DELIVERY"] = lambda alert: note(**_told(alert))
    guard = RedisGuard(app)
    app.session_interface = GuardedSessionInterface(guard)
    guard.limit_app(
        RATE,
        key="header:X-Subject",
        exempt_when=lambda: "X-Subject" not in request.headers,
    )
    circuit_state_changed.connect(_changed, app, weak=False)
    _add_client(app, guard)
    _add_limits(app)
    _add_sessions(app)
    _add_sockets(app)
    app.add_url_rule("/held", "held", lambda: jsonify(held(app, guard)))
    app.add_url_rule("/", "up", lambda: "up")
    app.wsgi_app = _Timed(app.wsgi_app)  # type: ignore[method-assign]
    return app


def note(**what: Any) -> None:
    """Write a line to the file of notes, in one step."""
    line = json.dumps({"process": os.getpid(), "at": time.time(), **what}) + "\n"
    with Path(os.environ[NOTES]).open("a") as file:
        file.write(line)


def _told(alert: Alert) -> dict[str, Any]:
    return {"alert": alert.kind, "incident": alert.incident}


def _changed(app: Flask, **event: Any) -> None:
    note(state=event["current"].value, before=event["previous"].value)


class _Timed:
    """Tells in each response how long it took."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        began = time.monotonic()

        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            took = f"{(time.monotonic() - began) * 1000:.1f}"
            return start_response(status, [*headers, (TOOK, took)], *more)

        return self._app(environ, start)  # type: ignore[no-any-return]


def _add_client(app: Flask, guard: RedisGuard) -> None:
    @app.get("/client/<name>")
    def client(name: str) -> str:
        guard.client.set(f"app:client:{name}", 1)
        return "stored"

    @app.get("/pipeline/<name>")
    def pipeline(name: str) -> str:
        # A tag, so that a cluster keeps both at one place.
        with guard.client.pipeline(transaction=True) as commands:
            commands.set(f"app:{{{name}}}:one", 1)
            commands.set(f"app:{{{name}}}:two", 1)
            commands.execute()
        return "stored"


def _subject() -> str:
    return request.args["who"]


def _add_limits(app: Flask) -> None:
    @app.get("/limit/route")
    @rate_limited(RATE, key=_subject)
    def route() -> str:
        return "admitted"

    @app.get("/limit/app")
    def whole() -> str:
        return "admitted"

    @app.get("/limit/deferred")
    @rate_limited(RATE, key=_subject, defer=True)
    def deferred() -> str:
        return "admitted"

    @app.get("/limit/refund")
    @rate_limited(RATE, key=_subject, refund_when=lambda response: response.status_code == 204)
    def refund() -> tuple[str, int]:
        return ("", 204) if "ok" in request.args else ("admitted", 200)


def _add_sessions(app: Flask) -> None:
    @app.post("/session/login/<user>")
    def login(user: str) -> str:
        session["user"] = user
        session.bind_user(user)
        return "saved"

    @app.get("/session/read")
    def read() -> str:
        return str(session.get("user", "nobody"))

    @app.post("/session/write/<name>")
    def write(name: str) -> str:
        session[name] = 1
        return "saved"

    @app.get("/session/all")
    def everything() -> Response:
        return jsonify(list(session))

    @app.post("/session/logout")
    def logout() -> str:
        session.clear()
        return "gone"


def _add_sockets(app: Flask) -> None:
    sock = Sock(app)

    @sock.route("/socket")  # type: ignore[untyped-decorator]
    @websocket_limited(
        connections="100000/hour", concurrent=1000, messages="100000/hour", key=_subject
    )
    def echo(ws: Any) -> None:
        while True:
            ws.send(ws.receive())

    @sock.route("/few")  # type: ignore[untyped-decorator]
    @websocket_limited(connections=RATE, key=_subject)
    def few(ws: Any) -> None:
        ws.receive()  # the client closes


def held(app: Flask, guard: RedisGuard) -> dict[str, Any]:
    """Return what this process holds now, once it has asked Redis: what it keeps begins then."""
    guard.client.ping()
    gc.collect()
    gevent = sys.modules.get("gevent")
    objects = gc.get_objects()
    pools = [each for each in objects if isinstance(each, GuardedPool)]
    connected = sum(
        connection._sock is not None or connection._dialling is not None
        for pool in pools
        for connection in pool._connections()
    )
    greenlets = 0
    if gevent is not None:
        greenlets = sum(isinstance(each, gevent.Greenlet) and not each.dead for each in objects)
    descriptors = [_target(each) for each in Path("/proc/self/fd").iterdir()]
    return {
        "process": os.getpid(),
        "threads": sorted(
            thread.name
            for thread in threading.enumerate()
            if not thread.name.startswith(("ThreadPoolExecutor", "Dummy", "MainThread"))
        ),
        "greenlets": greenlets,
        "sockets": sum(each.startswith("socket:") for each in descriptors) - connected,
        "connections": connected,
        "out": sum(pool.in_use for pool in pools),
        "places": len(app.extensions["redis_guard"].places),
        "memory": int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20,
    }


def _target(descriptor: Path) -> str:
    try:
        return os.readlink(descriptor)
    except OSError:
        return ""  # the directory's own
