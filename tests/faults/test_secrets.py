"""A whole outage, with everything that the guard says in it: no secret is among it."""

from __future__ import annotations

import io
import logging
import socket
import struct
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask, session

from flask_redis_guard import (
    GuardedSessionInterface,
    RedisGuard,
    RedisUnavailable,
    rate_limited,
    signals,
)
from tests.support import RedisServer, SilentServer, eventually
from tests.support.faults import LoopbackServer

PASSWORD = "p@ss/w:rd%41#&+żółć"
TOKEN = "health-token-0123456789"
SECRET_KEY = "the-key-that-signs"
SECRETS = (PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD), TOKEN, SECRET_KEY)


class Said(logging.Handler):
    """All that was said, in logs at every level and by all that write to it."""

    def __init__(self) -> None:
        super().__init__(level=1)
        self.stream = io.StringIO()
        self.formatter = logging.Formatter("%(message)s")

    def emit(self, record: logging.LogRecord) -> None:
        self.note(self.format(record), vars(record))

    def note(self, *things: object) -> None:
        for thing in things:
            self.stream.write(f"{thing} {thing!r}\n")


@pytest.fixture
def said() -> Iterator[Said]:
    said, root = Said(), logging.getLogger()
    level = root.level
    root.addHandler(said)
    root.setLevel(1)
    yield said
    root.setLevel(level)
    root.removeHandler(said)


def make_app(server: RedisServer, said: Said) -> Flask:
    app = Flask("secrets")
    app.config.update(
        REDIS_URL=server.url,
        SECRET_KEY=SECRET_KEY,
        REDIS_GUARD_HEALTH_TOKEN=TOKEN,
        REDIS_GUARD_FAILURE_THRESHOLD=2,
        REDIS_GUARD_FAILURE_ALERT_COUNT=2,
        REDIS_GUARD_OPEN_SECONDS=0.2,
        REDIS_GUARD_HEALTH_CHECK_INTERVAL=0.1,
        REDIS_GUARD_DOWNTIME_ALERT_SECONDS=0.2,
        REDIS_GUARD_TIMEOUT=0.2,
        REDIS_GUARD_ALERT_DELIVERY=lambda alert: said.note(alert, alert.as_dict()),
    )
    guard = RedisGuard(app)
    app.session_interface = GuardedSessionInterface(guard)

    @app.get("/")
    @rate_limited("1000/minute")
    def index() -> str:
        session["seen"] = True
        return "hello"

    @app.get("/broken")
    def broken() -> str:
        try:
            guard.client.get("key")
        except Exception as error:
            said.note(traceback.format_exc(), vars(error))
            raise ZeroDivisionError from error
        return "hello"

    return app


def ask_everything(app: Flask, said: Said) -> None:
    client = app.test_client()
    for path in ("/", "/broken", "/api/v1/health/ready", "/api/v1/health/detailed"):
        for headers in ({}, {"Authorization": f"Bearer {TOKEN}"}):
            response = client.get(path, headers=headers)
            said.note(response.text, response.headers)
    for command in (["check"], ["status"], ["reset", "somebody"]):
        said.note(app.test_cli_runner().invoke(args=["redis-guard", *command]).output)


def test_an_outage_tells_no_secret(own_server: RedisServer, said: Said) -> None:
    with own_server.client() as plain:
        plain.config_set("requirepass", PASSWORD)
    own_server.password = PASSWORD
    app = make_app(own_server, said)
    guard = app.extensions["redis_guard"]

    def receive(app: Flask, **event: Any) -> None:
        said.note(event)
        error = event.get("error")
        while error is not None:
            said.note(error, vars(error), error.args)
            error = error.__cause__ or error.__context__

    with ExitStack() as stack:
        for signal in vars(signals).values():
            if type(signal).__name__ == "NamedSignal":
                stack.enter_context(signal.connected_to(receive, app))
        ask_everything(app, said)
        client = guard.client
        said.note(client, client.connection_pool, client.pipeline(), guard.settings, guard.sessions)
        own_server.pause()
        ask_everything(app, said)
        own_server.resume()
        eventually(lambda: guard.breaker.state.value == "closed", 10)
        own_server.kill()
        ask_everything(app, said)
        eventually(lambda: "still down" in said.stream.getvalue(), 10)
        own_server.password = None
        own_server.start()  # it does not know the app's password any more
        eventually(lambda: "(authentication)" in said.stream.getvalue(), 10)
        ask_everything(app, said)
        guard.monitor.stop()
    everything = said.stream.getvalue()
    assert "(timeout)" in everything
    assert "(connection)" in everything
    assert [secret for secret in SECRETS if secret in everything] == []


class Resetting(LoopbackServer):
    """Resets each connection as soon as it is there."""

    def handle(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("kind", ["silent", "refused", "wrong", "reset"])
def test_no_frame_of_ours_holds_the_password_in_its_variables(
    kind: str,
) -> None:
    with SilentServer() as silent, RedisServer(password="another") as strict, Resetting() as cut:
        ports = {"silent": silent.port, "refused": 1, "wrong": strict.port, "reset": cut.port}
        port = ports[kind]
        app = Flask("frames")
        app.config.update(
            REDIS_URL=f"redis://operator:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/0",
            REDIS_GUARD_TIMEOUT=0.3,
            REDIS_GUARD_HEALTH_CHECK_INTERVAL=0,
        )
        client = RedisGuard(app).client_for(app)
        with pytest.raises(RedisUnavailable) as caught:
            client.get("key")
    errors: list[BaseException] = [caught.value]
    while cause := errors[-1].__cause__ or errors[-1].__context__:
        errors.append(cause)
    held: set[str] = set()
    for error in errors:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_globals["__name__"].startswith(("flask_redis_guard", "redis")):
                name = f"{frame.f_globals['__name__']}.{frame.f_code.co_name}"
                held.update(
                    f"{name}: {variable}"
                    for variable, value in frame.f_locals.items()
                    if any(secret in repr(value) for secret in SECRETS)
                )
    assert held == set()
