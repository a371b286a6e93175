"""Limits of real WebSocket clients, under three servers and with both libraries."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import socketio

from tests.support import GunicornApp, RedisServer, eventually
from tests.support.websockets import (
    CLIENTS,
    Client,
    Closed,
    PywsgiApp,
    Refused,
    SockClient,
    all_at_once,
    decisions,
    serve,
)

CROWD = 200


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest.fixture(scope="module")
def apps(server: RedisServer) -> Iterator[Callable[[str], GunicornApp | PywsgiApp]]:
    """Start each kind of server once, whatever the order of the tests."""
    running: dict[str, GunicornApp | PywsgiApp] = {}
    with ExitStack() as stack:

        def start(kind: str) -> GunicornApp | PywsgiApp:
            if kind not in running:
                # A deadline for one operation that two cores with hundreds of threads can keep.
                app = serve(kind, server.url, REDIS_GUARD_TIMEOUT="10")
                stack.enter_context(app)
                running[kind] = app
            return running[kind]

        yield start


@pytest.fixture(params=["pywsgi", "gevent", "gthread"])
def app(
    request: pytest.FixtureRequest, apps: Callable[[str], GunicornApp | PywsgiApp]
) -> GunicornApp | PywsgiApp:
    return apps(request.param)


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> type[Client]:
    return CLIENTS[request.param]


@pytest.fixture
def user() -> str:
    return uuid.uuid4().hex


def test_a_crowd_gets_exactly_the_places_and_connections_of_its_limits(
    app: GunicornApp | PywsgiApp, client: type[Client], user: str
) -> None:
    results = all_at_once(CROWD, lambda _: client(app.url, "few", user))
    admitted = [result for result in results if isinstance(result, client)]
    refused = [result for result in results if isinstance(result, Refused)]
    others = {repr(result) for result in results if not isinstance(result, (client, Refused))}
    assert (len(admitted), len(refused)) == (5, CROWD - 5), others
    if client is SockClient:
        assert {refusal.code for refusal in refused} == {429}
        assert all(int(refusal.headers["retry-after"]) >= 1 for refusal in refused)
        # 150 were within the rate; of these all but five found the places taken.
        assert sum("concurrency" in refusal.reason for refusal in refused) == 145
        assert sum("150/minute" in refusal.reason for refusal in refused) == 50
    else:
        assert {refusal.code for refusal in refused} == {1008}
    for connection in admitted:  # they are unharmed by what happened around them
        connection.send("still here")
        assert connection.receive() == "still here"
        connection.close()
    eventually(lambda: app.get().json()["places"] == 0, 10, "the places are freed")


def test_a_crowd_has_exactly_its_messages_delivered(
    app: GunicornApp | PywsgiApp, client: type[Client], user: str
) -> None:
    def say(number: int) -> str:
        connection = client(app.url, "chat", user)
        try:
            connection.send(f"message {number}")
            return connection.receive()
        finally:
            connection.close()

    results = all_at_once(CROWD, say)
    delivered = [result for result in results if isinstance(result, str)]
    closed = [result for result in results if isinstance(result, Closed)]
    others = {repr(result) for result in results if not isinstance(result, (str, Closed))}
    assert (len(delivered), len(closed)) == (60, CROWD - 60), others
    assert {(refusal.code, refusal.reason.partition(":")[0]) for refusal in closed} == {
        (1008, "Rate limit exceeded")
    }


def test_message_of_the_greatest_size_passes_and_one_byte_more_does_not(
    app: GunicornApp | PywsgiApp, client: type[Client], user: str
) -> None:
    connection = client(app.url, "chat", user)
    connection.send("é" * 512)
    assert connection.receive() == "é" * 512
    connection.send("é" * 512 + "x")
    with pytest.raises(Closed) as closed:
        connection.receive()
    assert (closed.value.code, closed.value.reason) == (1009, "Message is too big")
    connection.close()


def test_large_message_reaches_a_slow_client_whole(app: GunicornApp | PywsgiApp, user: str) -> None:
    connection = SockClient(app.url, "large", user)
    eventually(lambda: app.get().json()["places"] == 1, 5, "it is being sent")
    assert len(connection.receive()) == 5_000_000
    assert connection.receive() == "end"
    connection.close()


def test_message_costs_one_call_and_a_refused_burst_none(
    app: GunicornApp | PywsgiApp, client: type[Client], user: str, server: RedisServer
) -> None:
    connections = [client(app.url, "chat", user) for _ in range(11)]
    before = decisions(server)
    for _ in range(60):
        connections[0].send("x")
        connections[0].receive()
    assert decisions(server) - before == 60
    for connection in connections:  # the first refusal is asked for, the others are remembered
        connection.send("one too many")
        with pytest.raises(Closed):
            connection.receive()
        connection.close()
    assert decisions(server) - before == 61


def test_nothing_is_left_of_connections_that_ended(
    app: GunicornApp | PywsgiApp, client: type[Client], user: str
) -> None:
    def left() -> tuple[list[str], int]:
        state = app.get().json()
        # Engine.IO has one for all, from its first connection on.
        names = [name for name in state["threads"] if "_service_task" not in name]
        return names, state["greenlets"]

    client(app.url, "guarded", user).close()
    eventually(lambda: left()[0] == [], 10, f"no thread at the beginning {left()}")
    _, before = left()
    connections = [client(app.url, "guarded", user) for _ in range(20)]
    for connection in connections:
        connection.send("x")
        connection.receive()
    assert app.get().json()["places"] == 20
    for connection in connections[:10]:
        connection.close()
    for connection in connections[10:]:  # without a goodbye
        connection.ws.shutdown()  # type: ignore[no-untyped-call]
    eventually(lambda: left()[0] == [], 10, f"no thread is left {left()}")
    eventually(lambda: left()[1] <= before, 10, f"no greenlet of {before} is left {left()}")


def test_the_library_s_own_client_understands(app: GunicornApp | PywsgiApp, user: str) -> None:
    first = socketio.SimpleClient()
    options = {"namespace": "/chat", "transports": ["websocket"]}
    first.connect(f"{app.url}?user={user}", **options)
    first.emit("say", "hello")
    assert first.receive(timeout=10) == ["said", "hello"]
    first.emit("say", "x" * 1025)
    event, notice = first.receive(timeout=10)
    assert (event, notice["code"]) == ("rate_limited", 1009)
    eventually(lambda: not first.connected, 10, "it is disconnected")
    first.disconnect()
    told: list[Any] = []
    places = [CLIENTS["socketio"](app.url, "few", user) for _ in range(5)]
    second = socketio.Client(reconnection=False)
    second.on("connect_error", told.append, namespace="/few")
    with pytest.raises(socketio.exceptions.ConnectionError):
        second.connect(f"{app.url}?user={user}", namespaces=["/few"], transports=["websocket"])
    second.shutdown()
    for place in places:
        place.close()
    assert [notice["data"]["code"] for notice in told] == [1008]
