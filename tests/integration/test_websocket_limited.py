"""What ``@websocket_limited`` promises beside its numbers, in an app of the test's own process."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import requests
import simple_websocket
import websocket
from flask import Flask, abort, g, request
from flask_sock import Sock
from flask_socketio import SocketIO, emit
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.serving import make_server

from example_app.app import create_app
from example_app.chat import Room
from example_app.laboratory import Laboratory
from flask_redis_guard import (
    ConfigurationError,
    GuardError,
    RedisGuard,
    rate_limit_exceeded,
    request_refused,
    websocket_limited,
)
from flask_redis_guard.contrib.socketio import SocketIOLimits, limit_handshakes
from tests.support import RedisServer, eventually
from tests.support.ports import PortLease
from tests.support.websockets import (
    UNAVAILABLE,
    Closed,
    Refused,
    SockClient,
    SocketIOClient,
    decisions,
    frame,
    upgraded,
)

PROBLEM = "application/problem+json"

Serve = Callable[[Flask], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Run an app in threads of this process; returns its URL."""
    with contextlib.ExitStack() as stack:

        def run(app: Flask) -> str:
            server = make_server("127.0.0.1", 0, app, threaded=True)
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            stack.callback(server.server_close)
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            stack.callback(places_of(app).__len__)
            return f"http://127.0.0.1:{server.port}"

        yield run


def places_of(app: Flask) -> Any:
    return app.extensions["redis_guard"].places


def echo_app(url: str, *decorators: Any, **config: Any) -> Flask:
    """An app with one WebSocket at ``/echo``, decorated from the bottom up."""
    app = Flask("tests.echo")
    app.config.update(REDIS_URL=url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0, **config)
    RedisGuard(app)

    def echo(ws: Any) -> None:
        while True:
            ws.send(ws.receive())

    for decorator in decorators:
        echo = decorator(echo)
    Sock(app).route("/echo")(echo)
    return app


def user() -> str:
    return request.args["user"]


def said(client: SockClient, text: str) -> str:
    client.send(text)
    return client.receive()


@pytest.fixture
def nowhere() -> Iterator[str]:
    """A URL where no server answers."""
    lease = PortLease()
    yield f"redis://127.0.0.1:{lease.port}/0"
    lease.release()


@pytest.mark.parametrize(
    "options",
    [
        {"connections": "often"},
        {"messages": "5/fortnight"},
        {"concurrent": 0},
        {"concurrent": True},
        {"concurrent": 5, "lease": 0},
        {"max_message_size": 0},
        {"concurrent": 5, "key": "nobody"},
        {"concurrent": 5, "on_outage": "hope"},
        {"messages": "5/minute", "lease": "long"},
        {"scope": "shared"},
        {},
    ],
    ids=str,
)
def test_argument_that_cannot_be_honoured_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        websocket_limited(**options)
    with pytest.raises(ConfigurationError):
        SocketIOLimits(**options)


def test_decorator_in_the_wrong_place_is_refused_at_once(
    redis_server: RedisServer, serve: Serve
) -> None:
    limits = SocketIOLimits(messages="5/minute")

    def handler(ws: Any) -> None:
        raise AssertionError("it is not limited")

    async def asynchronous(ws: Any) -> None:
        raise AssertionError("nobody would await it")

    with pytest.raises(ConfigurationError, match=r"@websocket_limited\(messages="):
        websocket_limited(handler)
    for decorator in (websocket_limited(concurrent=1), limits.connect, limits.message):
        with pytest.raises(ConfigurationError, match="below @so"):
            decorator(asynchronous)
        with pytest.raises(ConfigurationError, match="a function"):
            decorator(None)  # type: ignore[type-var]

    app = echo_app(redis_server.url, websocket_limited(concurrent=1))
    page: Callable[..., Any] = websocket_limited(concurrent=1)(handler)
    app.add_url_rule("/page", "page", page)
    app.testing = True  # raises what would be a 500
    with pytest.raises(ConfigurationError, match=r"below @sock\.route"):
        app.test_client().get("/page")


def test_place_is_freed_though_another_teardown_function_fails(
    redis_server: RedisServer, serve: Serve
) -> None:
    app = echo_app(redis_server.url, websocket_limited(concurrent=1))

    @app.before_request
    def authenticate() -> None:
        abort(403)

    @app.teardown_request
    def fail(error: BaseException | None) -> None:
        raise ZeroDivisionError

    with contextlib.suppress(websocket.WebSocketException, ConnectionError):
        websocket.create_connection(f"{serve(app).replace('http', 'ws')}/echo", timeout=5)
    eventually(lambda: len(places_of(app)) == 0, 5, "the place is freed")
    with redis_server.client() as client:
        assert [client.zcard(key) for key in client.keys("guard:*")] == []


def test_app_limits_count_connections_too(redis_server: RedisServer, serve: Serve) -> None:
    app = echo_app(
        redis_server.url,
        websocket_limited(connections="10/minute"),
        REDIS_GUARD_DEFAULT_LIMITS="1/minute",
    )
    url = serve(app)
    SockClient(url, "echo", "a").close()
    for _ in range(3):
        with pytest.raises(Refused, match="1/minute"):
            SockClient(url, "echo", "a")
    # One call for both limits each time, the first with the script; a refusal is remembered.
    assert decisions(redis_server) == 2


def test_several_decorators_limit_several_subjects_at_one_call_a_message(
    redis_server: RedisServer, serve: Serve
) -> None:
    app = echo_app(
        redis_server.url,
        websocket_limited(messages="3/minute", key=user),
        websocket_limited(messages="5/minute", max_message_size=10),
    )
    url = serve(app)
    first, second = SockClient(url, "echo", "first"), SockClient(url, "echo", "second")
    before = decisions(redis_server)
    assert [said(first, "x") for _ in range(3)] == ["x"] * 3
    with pytest.raises(Closed, match=r"1008"):  # the user's
        said(first, "x")
    assert [said(second, "x") for _ in range(2)] == ["x"] * 2
    with pytest.raises(Closed, match=r"1008"):  # the address's
        said(second, "x")
    assert decisions(redis_server) - before == 7
    first.close()
    second.close()


def test_place_of_a_connection_that_another_hook_refuses_is_free_again(
    redis_server: RedisServer, serve: Serve
) -> None:
    app = echo_app(redis_server.url, websocket_limited(concurrent=1))

    @app.before_request
    def authenticate() -> None:
        if request.args["user"] == "stranger":
            abort(403)

    url = serve(app)
    for _ in range(3):
        with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
            websocket.create_connection(f"{url.replace('http', 'ws')}/echo?user=stranger")
    client = SockClient(url, "echo", "friend")
    assert said(client, "x") == "x"
    client.close()


def test_deferred_checks_see_what_hooks_found_out_and_close_after_the_upgrade(
    redis_server: RedisServer, serve: Serve
) -> None:
    app = echo_app(
        redis_server.url,
        websocket_limited(connections="2/minute", concurrent=1, key=lambda: g.user, defer=True),
    )

    @app.before_request
    def authenticate() -> None:
        g.user = request.args["user"]

    url = serve(app)
    first = SockClient(url, "echo", "a")
    assert said(first, "x") == "x"
    second = SockClient(url, "echo", "a")
    with pytest.raises(Closed, match="1008"):
        second.receive()
    other = SockClient(url, "echo", "b")
    assert said(other, "x") == "x"
    for client in (first, second, other):
        client.close()


def test_failing_key_refuses(redis_server: RedisServer, serve: Serve) -> None:
    app = echo_app(redis_server.url, websocket_limited(concurrent=1, key=lambda: 1 // 0))
    with pytest.raises(Refused, match=UNAVAILABLE) as refused:
        SockClient(serve(app), "echo", "a")
    assert refused.value.code == 503


def test_shadow_counts_and_announces_but_refuses_nothing(
    redis_server: RedisServer, serve: Serve
) -> None:
    app = echo_app(
        redis_server.url,
        websocket_limited(
            connections="1/minute",
            concurrent=1,
            messages="1/minute",
            max_message_size=1,
            shadow=True,
        ),
    )
    heard: list[tuple[str, bool]] = []

    def listen(_: Flask, decision: Any, scope: str, shadow: bool, **event: Any) -> None:
        heard.append((str(decision.rate), shadow))

    url = serve(app)
    with rate_limit_exceeded.connected_to(listen, app):
        clients = [SockClient(url, "echo", "a") for _ in range(2)]
        assert [said(client, "large") for client in clients] == ["large"] * 2
    assert len(heard) == 3
    assert all(shadow for _, shadow in heard)
    for client in clients:
        client.close()


def test_signals_tell_limits_from_outages(own_server: RedisServer, serve: Serve) -> None:
    app = echo_app(own_server.url, websocket_limited(messages="1/minute", key=user))
    exceeded: list[Any] = []
    refused: list[Any] = []

    def limit(_: Flask, **event: Any) -> None:
        exceeded.append(event)

    def outage(_: Flask, **event: Any) -> None:
        refused.append(event)

    url = serve(app)
    with rate_limit_exceeded.connected_to(limit, app), request_refused.connected_to(outage, app):
        client = SockClient(url, "echo", "a")
        said(client, "x")
        with pytest.raises(Closed, match="1008"):
            said(client, "x")
        assert [(e["endpoint"], e["shadow"]) for e in exceeded] == [("echo", False)]
        assert refused == []
        other = SockClient(url, "echo", "b")
        own_server.kill()
        with pytest.raises(Closed, match="1013"):
            said(other, "x")
    assert [e["endpoint"] for e in refused] == ["echo"]
    assert len(exceeded) == 1
    client.close()
    other.close()


@pytest.mark.parametrize(("on_outage", "admitted"), [("allow", 4), ("local", 2)])
def test_on_outage_counts_in_this_process_or_not_at_all(
    nowhere: str, serve: Serve, on_outage: Literal["allow", "local"], admitted: int
) -> None:
    app = echo_app(
        nowhere,
        websocket_limited(concurrent=4, messages="4/minute", on_outage=on_outage),
        REDIS_GUARD_PROCESSES=2,
    )
    url = serve(app)
    clients = [SockClient(url, "echo", "a") for _ in range(admitted)]
    if on_outage == "local":
        with pytest.raises(Refused):
            SockClient(url, "echo", "a")
        assert [said(clients[0], "x") for _ in range(2)] == ["x"] * 2
        with pytest.raises(Closed, match="1008"):
            said(clients[0], "x")
    else:
        assert [said(clients[0], "x") for _ in range(6)] == ["x"] * 6
    for client in clients:
        client.close()
    eventually(lambda: len(places_of(app)) == 0, 5, "the places are freed")


def test_place_taken_without_redis_counts_there_once_it_is_back(
    own_server: RedisServer, serve: Serve
) -> None:
    own_server.kill()
    app = echo_app(
        own_server.url,
        websocket_limited(concurrent=1, on_outage="allow", lease=1),
        REDIS_GUARD_OPEN_SECONDS=0.2,
    )
    url = serve(app)
    clients = [SockClient(url, "echo", "a") for _ in range(2)]
    own_server.start()
    eventually(lambda: len(places_of(app)) == 1, 5, "one of them is closed")
    ended = []
    for client in clients:
        try:
            said(client, "x")
        except Closed as closed:
            ended.append(closed.code)
        client.close()
    assert ended == [1008]


def test_lost_place_that_another_has_taken_closes_the_connection(
    redis_server: RedisServer, serve: Serve
) -> None:
    app = echo_app(redis_server.url, websocket_limited(concurrent=1, key=user, lease=2))
    url = serve(app)
    first = SockClient(url, "echo", "a")
    with redis_server.client() as client:
        client.flushall()
    second = SockClient(url, "echo", "a")
    with pytest.raises(Closed, match="1008"):
        first.receive()
    assert said(second, "x") == "x"
    first.close()
    second.close()


def test_development_counts_in_the_in_memory_store(nowhere: str, serve: Serve) -> None:
    app = echo_app(
        nowhere,
        websocket_limited(concurrent=1, messages="1/minute"),
        ENVIRONMENT="development",
    )
    url = serve(app)
    client = SockClient(url, "echo", "a")
    with pytest.raises(Refused) as refused:
        SockClient(url, "echo", "a")
    assert refused.value.code == 429
    assert said(client, "x") == "x"
    with pytest.raises(Closed, match="1008"):
        said(client, "x")
    client.close()


def test_connection_is_otherwise_as_it_was(redis_server: RedisServer, serve: Serve) -> None:
    app = Flask("tests.untouched")
    app.config.update(REDIS_URL=redis_server.url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0)
    guard = RedisGuard(app)
    seen: list[Any] = []
    ended = threading.Event()

    @Sock(app).route("/echo")  # type: ignore[untyped-decorator]
    @websocket_limited(messages="10/minute")
    def handler(ws: Any) -> None:
        seen.append((ws.receive(timeout=0), ws.receive(timeout=0.05), ws.connected, ws.mode))
        ws.send(b"bytes")
        seen.append(ws.receive())
        try:
            ws.close(4000, "done")
            ws.receive()
        except simple_websocket.ConnectionClosed:
            ended.set()
            raise

    client = SockClient(serve(app), "echo", "a")
    assert client.ws.recv_data() == (websocket.ABNF.OPCODE_BINARY, b"bytes")
    client.ws.send_binary(b"answer")
    with pytest.raises(Closed, match="4000"):
        client.receive()
    assert seen == [(None, None, True, "werkzeug"), b"answer"]
    assert decisions(redis_server) == 1  # nothing for having waited
    assert ended.wait(5)
    client.close()
    assert guard is not None


def test_refusal_raised_by_the_handler_closes_with_its_code(
    own_server: RedisServer, serve: Serve
) -> None:
    app = Flask("tests.calls")
    app.config.update(REDIS_URL=own_server.url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0)
    guard = RedisGuard(app)

    @Sock(app).route("/echo")  # type: ignore[untyped-decorator]
    @websocket_limited(max_message_size=10)
    def handler(ws: Any) -> None:
        ws.receive()
        guard.client.get("key")

    client = SockClient(serve(app), "echo", "a")
    own_server.kill()
    with pytest.raises(Closed, match="1013"):
        said(client, "x")
    client.close()


def test_client_that_answers_nothing_leaves_nothing_behind(
    redis_server: RedisServer, serve: Serve
) -> None:
    app = echo_app(redis_server.url, websocket_limited(concurrent=1, messages="1/minute"))
    url = serve(app)
    before = threading.active_count()
    with upgraded(url, "echo?user=a") as client:
        client.sendall(frame(1, b"x") * 1000)  # and never a close frame
        eventually(lambda: len(places_of(app)) == 0, 10, "the place is freed")
        eventually(lambda: threading.active_count() <= before, 10, "no thread is left")


def test_frame_too_large_for_memory_is_not_collected(
    redis_server: RedisServer, serve: Serve
) -> None:
    app = echo_app(redis_server.url, websocket_limited(max_message_size=1000))
    client = SockClient(serve(app), "echo", "a")
    # The header of one gigabyte, and a few kilobytes of it.
    assert client.ws.sock is not None
    client.ws.sock.sendall(b"\x82\xff" + (2**30).to_bytes(8, "big") + b"\0\0\0\0" + b"x" * 5000)
    with pytest.raises(Closed, match="1009"):
        client.receive()
    client.close()


def test_client_that_takes_nothing_is_cut_off(redis_server: RedisServer, serve: Serve) -> None:
    app = Flask("tests.push")
    app.config.update(REDIS_URL=redis_server.url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0)
    app.config["SOCK_SERVER_OPTIONS"] = {"ping_interval": 1}
    RedisGuard(app)
    ended: list[BaseException] = []

    @Sock(app).route("/push")  # type: ignore[untyped-decorator]
    @websocket_limited(concurrent=1)
    def push(ws: Any) -> None:
        try:
            while True:
                ws.send("x" * 100_000)
        except BaseException as error:
            ended.append(error)
            raise

    url = serve(app)
    before = threading.active_count()
    with upgraded(url, "push"):  # which reads not one byte
        eventually(lambda: len(places_of(app)) == 1, 5, "its place is taken")
        eventually(lambda: len(places_of(app)) == 0, 15, "its place is free again")
        eventually(lambda: threading.active_count() <= before, 5, "no thread is left")
    assert [type(error) for error in ended] == [simple_websocket.ConnectionClosed]


def test_client_that_answers_pings_is_not_cut_off_for_a_slow_handler(
    redis_server: RedisServer, serve: Serve
) -> None:
    app = Flask("tests.slow")
    app.config.update(REDIS_URL=redis_server.url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0)
    app.config["SOCK_SERVER_OPTIONS"] = {"ping_interval": 0.5}
    RedisGuard(app)
    go_on = threading.Event()

    @Sock(app).route("/slow")  # type: ignore[untyped-decorator]
    @websocket_limited(max_message_size=1000)
    def slow(ws: Any) -> None:
        assert not go_on.wait(2)  # seconds, in which several pings would be due
        for _ in range(220):
            ws.receive()
        ws.send("all")

    with upgraded(serve(app), "slow") as client:
        client.sendall(frame(1, b"x") * 20)  # more than is read ahead
        assert client.recv(2) == frame(9)[:1] + b"\0"  # a ping
        client.sendall(frame(1, b"x" * 100) * 200 + frame(10))  # its answer waits behind these
        said = b""
        while b"\x03all" not in said:
            received = client.recv(100)
            assert received, said
            said += received
        client.sendall(frame(8))
    go_on.set()


def test_gevent_websocket_is_warned_of_once(
    redis_server: RedisServer,
    serve: Serve,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "geventwebsocket").mkdir()
    (tmp_path / "geventwebsocket" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert "geventwebsocket" not in sys.modules
    url = serve(echo_app(redis_server.url, websocket_limited(concurrent=5)))
    with caplog.at_level(logging.WARNING, "flask_redis_guard"):
        for _ in range(2):
            SockClient(url, "echo", "a").close()
    assert sum("gevent-websocket is installed" in line for line in caplog.messages) == 1


def test_socketio_frees_places_however_a_connection_ends(
    redis_server: RedisServer, serve: Serve
) -> None:
    app = Flask("tests.socketio")
    app.config.update(REDIS_URL=redis_server.url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0)
    RedisGuard(app)
    socketio = SocketIO(app, async_mode="threading", ping_interval=1)
    limits = SocketIOLimits(connections="6/minute", concurrent=1)
    calls: list[str] = []

    @socketio.on("connect", namespace="/few")  # type: ignore[untyped-decorator]
    @limits.connect
    def connect() -> bool:  # without the argument: Flask-SocketIO tries twice
        calls.append(request.args["user"])
        return request.args["user"] != "stranger"

    url = serve(app)
    with pytest.raises(Refused):
        SocketIOClient(url, "few", "stranger")
    client = SocketIOClient(url, "few", "friend")
    with pytest.raises(Refused, match="Rate limit exceeded"):
        SocketIOClient(url, "few", "friend")
    client.ws.send("41/few,")  # a goodbye of the namespace alone
    eventually(lambda: len(places_of(app)) == 0, 5, "the place is freed")
    client.close()
    client = SocketIOClient(url, "few", "friend")
    client.close()
    eventually(lambda: len(places_of(app)) == 0, 5, "the place is freed")
    assert calls == ["stranger", "friend", "friend"]
    SocketIOClient(url, "few", "friend").close()
    eventually(lambda: len(places_of(app)) == 0, 5, "the place is freed")
    SocketIOClient(url, "few", "friend").close()  # the sixth: none was counted twice
    with pytest.raises(Refused, match="Rate limit exceeded"):
        SocketIOClient(url, "few", "friend")


def test_socketio_client_that_leaves_while_it_is_admitted_leaves_nothing(
    redis_server: RedisServer, serve: Serve
) -> None:
    app = Flask("tests.leaving")
    app.config.update(REDIS_URL=redis_server.url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0)
    RedisGuard(app)
    socketio = SocketIO(app, async_mode="threading", ping_interval=1)
    asked, left = threading.Event(), threading.Event()

    def slowly_known() -> str:
        asked.set()
        assert left.wait(10)
        return "somebody"

    limits = SocketIOLimits(concurrent=1, key=slowly_known, lease=2)

    @socketio.on("connect", namespace="/few")  # type: ignore[untyped-decorator]
    @limits.connect
    def connect() -> None:
        pass

    poll = f"{serve(app)}/socket.io/?EIO=4&transport=polling"
    poll += "&sid=" + requests.get(poll, timeout=5).text.partition('"sid":"')[2].partition('"')[0]
    joining = threading.Thread(target=requests.post, args=(poll, "40/few,"), kwargs={"timeout": 10})
    joining.start()
    assert asked.wait(5)
    assert requests.post(poll, "1", timeout=5).status_code == 200  # a goodbye of Engine.IO
    left.set()
    joining.join()
    assert len(places_of(app)) == 1
    eventually(lambda: len(places_of(app)) == 0, 5, "the place is free with its next renewal")
    assert vars(socketio.server.manager)["redis_guard_places"] == {}


def test_handler_that_raises_frees_its_place(redis_server: RedisServer, serve: Serve) -> None:
    app = Flask("tests.raising")
    app.config.update(REDIS_URL=redis_server.url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0)
    RedisGuard(app)

    @Sock(app).route("/echo")  # type: ignore[untyped-decorator]
    @websocket_limited(concurrent=1)
    def handler(ws: Any) -> None:
        raise ZeroDivisionError(ws.receive())

    url = serve(app)
    for _ in range(2):
        client = SockClient(url, "echo", "a")
        with pytest.raises(Closed, match="1011"):
            said(client, "x")
        eventually(lambda: len(places_of(app)) == 0, 5, "the place is free again")
        client.close()


def test_handshakes_of_engineio_are_refused_as_http(own_server: RedisServer, serve: Serve) -> None:
    app = Flask("tests.handshakes")
    app.config.update(REDIS_URL=own_server.url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0)
    RedisGuard(app)
    with pytest.raises(GuardError, match=r"after SocketIO\(app\)"):
        limit_handshakes(app, "2/minute")
    socketio = SocketIO(app, async_mode="threading", ping_interval=1)
    limit_handshakes(app, "2/minute", key=user)
    limits = SocketIOLimits(messages="10/minute", key=user)

    @socketio.on("connect", namespace="/chat")  # type: ignore[untyped-decorator]
    @limits.connect
    def connect() -> None:
        pass

    @socketio.on("say", namespace="/chat")  # type: ignore[untyped-decorator]
    @limits.message
    def say(text: str) -> None:
        emit("said", text)

    url = serve(app)
    poll = f"{url}/socket.io/?EIO=4&transport=polling&user=a"
    session = requests.get(poll, timeout=5).text.partition('"sid":"')[2].partition('"')[0]
    client = SocketIOClient(url, "chat", "a")  # the second
    refused = requests.get(f"{poll}&sid=", timeout=5)  # which is none to Engine.IO
    assert (refused.status_code, refused.headers["content-type"]) == (429, PROBLEM)
    assert int(refused.headers["retry-after"]) >= 1
    with pytest.raises(websocket.WebSocketBadStatusException, match="429"):
        SocketIOClient(url, "chat", "a")
    nobody = requests.get(poll.replace("&user=a", ""), timeout=5)  # the key aborts
    assert nobody.status_code == 400
    assert len(socketio.server.eio.sockets) == 2
    # What belongs to a connection is not counted.
    assert requests.post(f"{poll}&sid={session}", "40/chat,", timeout=5).status_code == 200
    client.send("x")
    assert client.receive() == "x"
    client.close()
    own_server.kill()
    unavailable = requests.get(poll.replace("user=a", "user=b"), timeout=5)
    assert (unavailable.status_code, unavailable.headers["content-type"]) == (503, PROBLEM)
    assert UNAVAILABLE in unavailable.text


@pytest.mark.parametrize("last", [True, False], ids=["after SocketIO", "before SocketIO"])
def test_proxy_that_socketio_does_not_believe_is_warned_of(
    redis_server: RedisServer, serve: Serve, caplog: pytest.LogCaptureFixture, last: bool
) -> None:
    def believe() -> None:
        app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]

    app = Flask("tests.proxied")
    app.config.update(REDIS_URL=redis_server.url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0)
    RedisGuard(app)
    if not last:
        believe()
    socketio = SocketIO(app, async_mode="threading", ping_interval=1)
    limit_handshakes(app, "1/minute")
    socketio.on("connect")(SocketIOLimits(concurrent=1).connect(lambda: None))
    if last:
        believe()
    poll = f"{serve(app)}/socket.io/?EIO=4&transport=polling"
    codes = [
        requests.get(poll, headers={"X-Forwarded-For": f"203.0.113.{n}"}, timeout=5).status_code
        for n in (1, 2, 3)
    ]
    assert codes == ([200] * 3 if last else [200, 429, 429])
    told = [line for line in caplog.messages if "ProxyFix" in line]
    assert len(told) == (0 if last else 1)
    assert all("after SocketIO(app)" in line for line in told)


def test_namespaces_that_clients_name_count_together(
    redis_server: RedisServer, serve: Serve
) -> None:
    app = Flask("tests.namespaces")
    app.config.update(REDIS_URL=redis_server.url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0)
    RedisGuard(app)
    socketio = SocketIO(app, async_mode="threading", ping_interval=1, namespaces="*")
    limits = SocketIOLimits(concurrent=1, messages="1/minute")

    @socketio.on("connect", namespace="*")  # type: ignore[untyped-decorator]
    @limits.connect
    def connect(auth: Any) -> None:
        pass

    @socketio.on("say", namespace="*")  # type: ignore[untyped-decorator]
    @limits.message
    def say(text: str) -> None:
        emit("said", text)

    url = serve(app)
    first = SocketIOClient(url, "one", "a")
    with pytest.raises(Refused, match="Rate limit exceeded"):
        SocketIOClient(url, "two", "a")
    first.send("x")
    assert first.receive() == "x"
    first.close()
    eventually(lambda: len(places_of(app)) == 0, 5, "the place is freed")
    second = SocketIOClient(url, "three", "a")
    second.send("x")
    with pytest.raises(Closed, match="1008"):
        second.receive()
    second.close()


def test_two_keys_of_one_connection_are_two_counts(redis_server: RedisServer, serve: Serve) -> None:
    def by(name: str) -> Callable[[], str]:
        return lambda: request.args.get(name, "nobody")

    def options(name: str) -> dict[str, Any]:
        return {"connections": "9/minute", "concurrent": 2, "messages": "4/minute", "key": by(name)}

    app = echo_app(
        redis_server.url,
        websocket_limited(**options("user")),
        websocket_limited(**options("device")),
    )
    socketio = SocketIO(app, async_mode="threading", ping_interval=1)
    by_user, by_device = SocketIOLimits(**options("user")), SocketIOLimits(**options("device"))
    socketio.on("connect", namespace="/echo")(by_user.connect(by_device.connect(lambda: None)))
    say = by_device.message(by_user.message(lambda text: emit("said", text)))
    socketio.on("say", namespace="/echo")(say)
    url = serve(app)
    for kind in (SockClient, SocketIOClient):
        first = kind(url, "echo", "alice&device=phone")
        second = kind(url, "echo", "bob&device=alice")  # with places and messages of its own
        for client in (first, second):
            for _ in range(4):
                client.send("x")
                assert client.receive() == "x"
        third = kind(url, "echo", "alice&device=tablet")
        with pytest.raises(Refused, match=r"Rate limit exceeded|concurrency"):
            kind(url, "echo", "alice&device=watch")
        third.send("x")
        with pytest.raises(Closed, match="1008"):  # alice's fifth
            third.receive()
        for client in (first, second, third):
            client.close()
        eventually(lambda: len(places_of(app)) == 0, 5, "the places are freed")


def test_limits_of_socketio_are_listed_and_misplaced_ones_warned_of(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    app = Flask("tests.listed")
    app.config.update(REDIS_URL=redis_server.url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0)
    RedisGuard(app)
    socketio = SocketIO(app, async_mode="threading")
    limit_handshakes(app, "9/minute")
    limits = SocketIOLimits(connections="8/minute", concurrent=3, max_message_size=10)
    wrong = SocketIOLimits(messages="7/minute")

    @socketio.on("connect", namespace="/chat")  # type: ignore[untyped-decorator]
    @limits.connect
    def connect() -> None:
        pass

    @wrong.message  # too late: what is registered is the function below
    @socketio.on("say", namespace="/chat")  # type: ignore[untyped-decorator]
    @limits.message
    def say(text: str) -> None:
        pass

    lines = app.test_cli_runner().invoke(args=["redis-guard", "limits", "--json"]).output
    rows = [json.loads(line) for line in lines.splitlines()]
    assert [(row["scope"], row["limit"]) for row in rows if "socketio" in row["scope"]] == [
        ("socketio:handshake", "9/minute"),
        ("socketio:/chat", "8/minute"),
        ("socketio:/chat", "3 at once"),
        ("socketio:/chat", "10 bytes"),
        ("socketio:/chat (not applied)", "7/minute"),
    ]
    app.test_client().get("/")
    told = [line for line in caplog.messages if "put the decorator below" in line]
    assert len(told) == 1
    assert "socketio:/chat" in told[0]


def test_chat_of_the_example_reaches_everybody_within_its_limits(
    serve: Serve, tmp_path: Path
) -> None:
    room = Room()
    app = create_app(Laboratory(tmp_path), room)
    url = serve(app)
    assert b"Take Redis away" in app.test_client().get("/").data
    assert app.test_client().get("/chat/").status_code == 200
    with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
        websocket.create_connection(
            url.replace("http", "ws") + "/chat/socket", origin="http://elsewhere.example"
        )
    clients = [SockClient(url, "chat/socket", "") for _ in range(5)]
    with pytest.raises(Refused, match="concurrency"):
        SockClient(url, "chat/socket", "")
    eventually(lambda: len(room) == 5 and room._subscribed.is_set(), 10, "all of them listen")
    clients[0].send("hello")
    assert [client.receive() for client in clients] == ["somebody: hello"] * 5
    for number in range(59):
        clients[1].send(str(number))
    assert [clients[1].receive() for _ in range(59)][-1] == "somebody: 58"
    clients[1].send("one too many")  # now: a connection that is closed is relayed nothing
    with pytest.raises(Closed, match="1008"):
        clients[1].receive()
    # What was relayed to the sender need not have been relayed to the others yet.
    for _ in range(59):
        clients[2].receive()
    clients[2].send("x" * 10_241)
    with pytest.raises(Closed, match="1009"):
        clients[2].receive()
    for client in clients:
        client.close()
