"""The session in a WebSocket handler of flask-sock."""

from __future__ import annotations

from websocket import create_connection

from tests.support import GunicornApp, RedisServer, eventually
from tests.support.session_apps import session_app

from .conftest import cookie_of

APP = """
    import os
    from flask import session
    from flask_redis_guard import GuardError
    from flask_sock import Sock
    from tests.support.session_apps import session_app

    app, guard = session_app(os.environ["SERVER"])
    sock = Sock(app)

    @sock.route("/socket")
    def socket(ws):
        ws.send(str(dict(session)))
        for change in (
            lambda: session.update(a=2), session.clear, session.regenerate,
            lambda: session.bind_user(5), lambda: session.pop("a"),
        ):
            try:
                change()
            except GuardError as error:
                ws.send(str(error))
        session["list"].append(1)
        ws.close()
"""


def test_it_can_be_read_and_not_written(redis_server: RedisServer) -> None:
    app, _ = session_app(redis_server.url)
    client = app.test_client()
    client.post("/write", json={"a": 1, "list": []})
    with GunicornApp(
        APP,
        worker_class="gthread",
        threads=4,
        env={"SERVER": redis_server.url},
        ready_path="/untouched",
    ) as running:
        url = running.url.replace("http", "ws") + "/socket"
        ws = create_connection(url, timeout=10, cookie=f"session={cookie_of(client)}")
        assert ws.recv() == "{'a': 1, 'list': []}"
        assert all("read-only in a WebSocket handler" in str(ws.recv()) for _ in range(5))
        ws.shutdown()  # type: ignore[no-untyped-call]
        eventually(lambda: "A change inside a session is lost" in running.log())
        assert running.get("/untouched").status_code == 200
    assert client.get("/read").json == {"a": 1, "list": []}
