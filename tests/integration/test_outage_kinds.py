"""Every kind of outage, for the guard and for clients of redis-py that know nothing of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from flask import Flask

from flask_redis_guard import CircuitState, RedisGuard, RedisUnavailable
from flask_redis_guard.testing import audit, outage
from flask_redis_guard.testing.faults import KINDS, MEANINGS, Kind
from flask_redis_guard.testing.framing import encode_reply, pack, reply_end, take_command
from tests.support import Proxy, RedisServer, TLSIdentity, eventually, run_python

#: What a client without the guard is told, and why the guard says that it cannot serve a write.
TOLD: dict[Kind, tuple[type[Exception], str]] = {
    "refused": (redis.ConnectionError, "connection"),
    "hang": (redis.TimeoutError, "timeout"),
    "slow": (redis.TimeoutError, "timeout"),
    "read-only": (redis.exceptions.ReadOnlyError, "read-only"),
    "out-of-memory": (redis.exceptions.OutOfMemoryError, "out-of-memory"),
    "half-way": (redis.ConnectionError, "connection"),
}


def make_app(url: str, name: str = "kinds", **config: Any) -> Flask:
    app = Flask(name)
    app.config.update(REDIS_URL=url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0)
    app.config.update({"REDIS_GUARD_TIMEOUT": 0.4, **config})
    RedisGuard(app)
    return app


def client_of(app: Flask) -> Any:
    return RedisGuard().client_for(app)


def plain(url: str, **options: Any) -> Any:
    retry = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
    return redis.Redis.from_url(url, **{"socket_timeout": 0.4, "retry": retry, **options})


@pytest.fixture
def app(redis_server: RedisServer) -> Flask:
    return make_app(redis_server.url)


@pytest.fixture
def outside(redis_server: RedisServer) -> Iterator[Any]:
    """A client with an open connection, which knows nothing of the guard."""
    with plain(redis_server.url) as client:
        client.set("n", "1")
        yield client


@pytest.mark.parametrize("kind", sorted(TOLD))
def test_everybody_is_told_alike(
    app: Flask, outside: Any, redis_server: RedisServer, kind: Kind
) -> None:
    guarded = client_of(app)
    assert guarded.get("n") == b"1"
    told, reason = TOLD[kind]
    with outage(app, kind):
        for client in (outside, plain(redis_server.url)):  # one is connected, one is new
            with pytest.raises(told):
                client.set("n", "2")
        with pytest.raises(RedisUnavailable) as caught:
            guarded.set("n", "2")
        assert caught.value.reason == reason
    # Where only the answer was late or broke, what was asked is done.
    assert outside.get("n") == (b"2" if kind in ("half-way", "slow") else b"1")
    assert guarded.set("n", "3") is True
    assert outside.get("n") == b"3"


def test_every_kind_has_a_meaning_and_no_other_is_taken(app: Flask) -> None:
    assert set(MEANINGS) == set(KINDS) == {*TOLD, "empty"}
    with pytest.raises(ValueError, match="half-way"), outage(app, "sideways"):  # type: ignore[arg-type]
        pass


def test_empty_is_empty_for_a_while(app: Flask, outside: Any) -> None:
    with outage(app, "empty"):
        assert outside.get("n") is None
        assert outside.set("n", "of the other store") is True
        assert client_of(app).get("n") == b"of the other store"
    assert outside.get("n") == b"1"


def test_an_empty_store_takes_every_login() -> None:
    with RedisServer(password="secret") as server, outage(make_app(server.url), "empty"):
        for protocol in (2, 3):
            login = {"username": "somebody", "password": "other"}
            with plain(server.url, protocol=protocol, **login) as client:
                assert client.incr("n") == protocol - 1


@pytest.mark.parametrize("kind", ["read-only", "out-of-memory"])
def test_a_transaction_that_writes_is_given_up(
    app: Flask, outside: Any, redis_server: RedisServer, kind: Kind
) -> None:
    with outage(app, kind):
        with pytest.raises(redis.exceptions.ResponseError):
            outside.pipeline().get("n").set("n", "2").execute()
        assert outside.pipeline().get("n").execute() == [b"1"]
        connection = redis.Connection("127.0.0.1", redis_server.port)
        for words, answer in ((("MULTI",), b"OK"), (("GET", "n"), b"QUEUED")):
            connection.send_command(*words)
            assert connection.read_response() == answer
        connection.send_command("SET", "n", "2")
        with pytest.raises(redis.exceptions.ResponseError):
            connection.read_response()
        connection.send_command("EXEC")
        with pytest.raises(redis.exceptions.ExecAbortError):
            connection.read_response()
        connection.disconnect()
    assert outside.pipeline().get("n").set("n", "2").execute() == [b"1", True]


def test_out_of_memory_frees(app: Flask, outside: Any) -> None:
    with outage(app, "out-of-memory"):
        assert outside.delete("n") == 1
    with outage(app, "read-only"), pytest.raises(redis.exceptions.ReadOnlyError):
        outside.delete("n")


def test_a_pipeline_is_late_once(app: Flask, redis_server: RedisServer) -> None:
    with plain(redis_server.url, socket_timeout=5) as client, outage(app, "slow", seconds=0.2):
        client.ping()
        started = time.monotonic()
        pipeline = client.pipeline(transaction=False)
        for _ in range(10):
            pipeline.ping()
        pipeline.execute()
        assert 0.2 <= time.monotonic() - started < 1.5


def test_a_subscriber_hears_nothing_while_it_hangs(
    app: Flask, outside: Any, redis_server: RedisServer
) -> None:
    with outage(app, "slow", seconds=0.01):
        subscriber = plain(redis_server.url).pubsub(ignore_subscribe_messages=False)
        subscriber.subscribe("news")
        assert subscriber.get_message(timeout=2)["type"] == "subscribe"
        outside.publish("news", "one")
        assert subscriber.get_message(timeout=2)["data"] == b"one"
    subscriber.close()
    with outage(app, "hang"):
        hanging = plain(redis_server.url).pubsub()
        with pytest.raises(redis.TimeoutError):
            hanging.subscribe("news")
    hanging.close()


def test_guards_of_other_apps_are_left_alone(app: Flask, redis_server: RedisServer) -> None:
    other = make_app(redis_server.url, "other")
    client_of(other).ping()
    with outage(app):
        assert client_of(other).ping() is True
        with outage(other, "hang"):
            with pytest.raises(redis.TimeoutError):
                client_of(other).ping()
            with pytest.raises(redis.ConnectionError):
                client_of(app).ping()
        assert client_of(other).ping() is True


@pytest.fixture
def workers(redis_server: RedisServer, tmp_path: Path) -> tuple[Flask, Flask]:
    """Two workers of one app on one host, which share what they know."""
    config: dict[str, Any] = {"REDIS_GUARD_HOST_STATE": str(tmp_path)}
    config["REDIS_GUARD_FAILURE_THRESHOLD"] = 1
    tested, other = (make_app(redis_server.url, **config) for _ in range(2))
    tested.get("/")(lambda: str(client_of(tested).incr("n")))
    assert client_of(tested).ping() is client_of(other).ping() is True
    assert len(other.extensions["redis_guard"].workers()) == 2
    return tested, other


def state_of(app: Flask) -> CircuitState:
    guarded = app.extensions["redis_guard"]
    guarded.look()
    state: CircuitState = guarded.breaker.state
    return state


def test_an_outage_is_none_for_other_workers_of_the_host(workers: tuple[Flask, Flask]) -> None:
    tested, other = workers
    with outage(tested) as breaker:
        assert tested.test_client().get("/").status_code == 503
        assert breaker.state is CircuitState.OPEN
        assert state_of(other) is CircuitState.CLOSED
        assert client_of(other).ping() is True


def test_an_audit_is_none_for_other_workers_of_the_host(workers: tuple[Flask, Flask]) -> None:
    tested, other = workers
    seen: list[CircuitState] = []

    def look(doing: str, done: int, total: int) -> None:
        if doing == "refused" and done:
            assert tested.extensions["redis_guard"].breaker.state is CircuitState.OPEN
            seen.append(state_of(other))

    assert audit(tested, faults=["refused"], progress=look).passed
    assert seen == [CircuitState.CLOSED]


def test_unix_sockets(tmp_path: Path) -> None:
    with RedisServer(unix_socket=True) as server:
        app = make_app(f"unix://{server.socket_path}")
        with plain(f"unix://{server.socket_path}") as client:
            with outage(app, "read-only"):
                assert client.get("n") is None
                assert client_of(app).get("n") is None
                with pytest.raises(redis.exceptions.ReadOnlyError):
                    client.set("n", "1")
            with outage(app), pytest.raises(redis.ConnectionError):
                client.get("n")
            assert client.get("n") is None


def test_tls_reaches_the_server_through_the_relay(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    with Proxy(redis_server.port, tls=TLSIdentity(str(tmp_path))) as proxy:
        app = make_app(proxy.url, REDIS_GUARD_TIMEOUT=5)
        with plain(proxy.url, socket_timeout=5) as client:
            client.set("n", "1")
            with outage(app, "read-only"):
                assert client.get("n") == b"1"
                assert client_of(app).get("n") == b"1"
                with pytest.raises(redis.exceptions.ReadOnlyError):
                    client.set("n", "2")


@pytest.mark.parametrize("by", ["port", "path"])
def test_asynchronous_clients(by: str) -> None:
    with RedisServer(unix_socket=True) as server:
        url = server.url if by == "port" else f"unix://{server.socket_path}"
        app = make_app(server.url)

        @app.get("/<name>")
        async def ask(name: str) -> str:
            async with redis.asyncio.from_url(url, socket_timeout=0.4) as client:
                await client.get(name)
                return str(await client.incr(name))

        _check_asynchronous(app)


def _check_asynchronous(app: Flask) -> None:
    app.config["PROPAGATE_EXCEPTIONS"] = False
    answer = app.test_client().get
    assert answer("/n").text == "1"
    with outage(app, "read-only"):
        assert answer("/n").status_code == 500
    with outage(app):
        assert answer("/n").status_code == 500
    assert answer("/n").text == "2"


def test_a_server_ends_with_the_process_that_it_is_for() -> None:
    code = """
    import os
    from flask_redis_guard.testing.scratch import ScratchServer

    child = os.fork()
    if not child:
        server = ScratchServer()
        print(server._process.pid, server._directory, flush=True)
        os._exit(0)  # as one that is killed
    os.waitpid(child, 0)
    """
    number, directory = run_python(code).split()
    eventually(lambda: not Path(directory).exists())
    eventually(lambda: _has_ended(number))


def _has_ended(number: str) -> bool:
    try:
        # Where nobody sees to orphans it stays in the list of processes.
        return "\nState:\tZ" in Path("/proc", number, "status").read_text()
    except OSError:
        return True


def test_it_leaves_no_thread_and_no_socket(
    app: Flask, outside: Any, redis_server: RedisServer
) -> None:
    connect = redis.Connection._connect
    with outage(app, "hang"), pytest.raises(redis.TimeoutError):
        outside.ping()
    assert redis.Connection._connect is connect
    for thread in threading.enumerate():
        if thread.name == "redis-wire":
            thread.join(5)
            assert not thread.is_alive()
    assert outside.ping() is True
    fresh: Any = redis.Connection("127.0.0.1", redis_server.port)
    fresh.connect()
    assert fresh._sock.getpeername() == ("127.0.0.1", redis_server.port)
    fresh.disconnect()


# -- the wire's format -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        b"+OK\r\n",
        b"-ERR no\r\n",
        b":1\r\n",
        b"$-1\r\n",
        b"$0\r\n\r\n",
        b"$4\r\na\r\nb\r\n",
        b"*-1\r\n",
        b"*0\r\n",
        b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n",
        b"%1\r\n+a\r\n*2\r\n:1\r\n:2\r\n",
        b"|1\r\n+ttl\r\n:3\r\n$1\r\na\r\n",
        b"~1\r\n#t\r\n",
        b"_\r\n",
        b",1.5\r\n",
        b"(123\r\n",
        b"=7\r\ntxt:abc\r\n",
        b"!3\r\nERR\r\n",
        b">2\r\n+message\r\n+x\r\n",
    ],
)
def test_a_reply_ends_where_it_ends(reply: bytes) -> None:
    assert reply_end(reply + b"+more\r\n") == len(reply)
    for size in range(len(reply)):
        assert reply_end(reply[:size]) is None


def test_what_is_no_reply_is_refused() -> None:
    with pytest.raises(ValueError):
        reply_end(b"HTTP/1.1 200 OK\r\n")


def test_commands_are_taken_one_by_one() -> None:
    data = pack(b"SET", b"k", b"a\r\nb") + b"PING\r\n" + pack(b"")
    first = take_command(data)
    assert first is not None
    assert first[0].words == [b"SET", b"k", b"a\r\nb"]
    assert first[0].raw == pack(b"SET", b"k", b"a\r\nb")
    second = take_command(data[first[1] :])
    assert second is not None
    assert (second[0].name, second[1]) == ("PING", 6)
    for size in range(len(first[0].raw)):
        assert take_command(data[:size]) is None


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (None, b"$-1\r\n"),
        (True, b":1\r\n"),
        (7, b":7\r\n"),
        (b"a", b"$1\r\na\r\n"),
        ("ä", b"$2\r\n\xc3\xa4\r\n"),
        ([b"a", None, [1]], b"*3\r\n$1\r\na\r\n$-1\r\n*1\r\n:1\r\n"),
        ({b"k": 1}, b"*2\r\n$1\r\nk\r\n:1\r\n"),
        (redis.ResponseError("ERR a\r\nb"), b"-ERR a  b\r\n"),
    ],
)
def test_values_of_the_in_memory_store_as_replies(value: object, sent: bytes) -> None:
    assert encode_reply(value) == sent
