"""What a server in trouble says, what the caller is told, and what the log and the breaker make
of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis._parsers import _RESP2Parser

from flask_redis_guard import RedisUnavailable
from tests.support import MalformedServer, RedisServer, eventually
from tests.support.guarded import NEVER_OPENS, Guarded


def raw_connection(client: Any) -> Any:
    """A connection of its own; redis-py 5.0 wants a command's name, later versions warn of it."""
    pool = client.connection_pool
    connection = pool.connection_class(**pool.connection_kwargs)
    connection.connect()
    return connection


def read_only(server: RedisServer) -> None:
    with server.client() as client:
        client.replicaof("127.0.0.1", 1)


def full_memory(server: RedisServer) -> None:
    with server.client() as client:
        client.config_set("maxmemory", 1)


def full_disk(server: RedisServer) -> None:
    (server.directory / "dump.rdb").mkdir()  # where the snapshot would go
    with server.client() as client:
        client.config_set("save", "3600 1")
        client.bgsave()
        eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")


def loading(server: RedisServer) -> None:
    with server.client() as client:
        client.mset({f"key:{number}": "value" * 100 for number in range(1000)})
        client.config_set("key-load-delay", 2_000)
        client.config_set("loading-process-events-interval-bytes", 1024)
        client.config_rewrite()
        client.save()
    server.kill()
    server.start(wait=False)

    def busy() -> bool:
        try:
            with server.client(socket_timeout=1) as client:
                client.get("k")
        except redis.exceptions.BusyLoadingError:
            return True
        except redis.ConnectionError:
            pass
        return False

    eventually(busy, 10, "the server loads")


def changed_password(server: RedisServer) -> None:
    with server.client() as client:
        client.config_set("requirepass", "another")
        client.execute_command("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes")


def too_many_clients(server: RedisServer) -> None:
    with server.client() as client:
        connection = raw_connection(client)
    keep.append(connection)
    for command in ("CONFIG SET maxclients 1", "CLIENT KILL TYPE normal SKIPME yes"):
        connection.send_command(*command.split())
        connection.read_response()


def no_replicas(server: RedisServer) -> None:
    with server.client() as client:
        client.config_set("min-replicas-to-write", 1)


def busy_script(server: RedisServer) -> None:
    with server.client() as client:
        client.config_set("lua-time-limit", 10)
        connection = raw_connection(client)
        connection.send_command("EVAL", "while true do end", 0)
        keep.append(connection)

    def busy() -> bool:
        with server.client() as client:
            try:
                return not client.ping()
            except redis.ResponseError:
                return True

    eventually(busy, 5, "the script is too long")


keep: list[Any] = []

TROUBLES: dict[str, Callable[[RedisServer], None]] = {
    "read-only": read_only,
    "out-of-memory": full_memory,
    "misconf": full_disk,
    "loading": loading,
    "authentication": changed_password,
    "max-clients": too_many_clients,
    "no-replicas": no_replicas,
    "busy": busy_script,
}


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    yield
    while keep:
        keep.pop().disconnect()


@pytest.mark.parametrize("reason", TROUBLES)
def test_a_server_in_trouble_is_a_failure_with_a_reason(
    reason: str, own_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    guarded = Guarded(own_server.url, REDIS_GUARD_FAILURE_THRESHOLD=3, REDIS_GUARD_TIMEOUT=2)
    guarded.client.set("k", "v")
    TROUBLES[reason](own_server)
    guarded.finished.clear()
    caplog.clear()
    with caplog.at_level(logging.INFO, "flask_redis_guard"):
        for _ in range(3):
            with pytest.raises(RedisUnavailable) as refusal:
                guarded.client.set("k", "v")
            assert refusal.value.reason == reason
            assert isinstance(refusal.value.__cause__, redis.RedisError)
    assert guarded.finished == [("SET", "failure", reason)] * 3
    failed, opened = caplog.records
    assert failed.getMessage() == f"Redis connection failed ({reason} in SET)"
    assert failed.levelname == "ERROR"
    assert (failed.reason, failed.operation) == (reason, "SET")  # type: ignore[attr-defined]
    assert opened.getMessage().startswith(
        f"Circuit breaker opening after 3 failures (consecutive-failures; the last: {reason} in SET"
    )
    guarded.close()


def test_a_pipeline_that_hides_errors_is_a_failure_nevertheless(own_server: RedisServer) -> None:
    guarded = Guarded(own_server.url)
    read_only(own_server)
    replies = guarded.client.pipeline(transaction=False).set("k", "v").get("k").execute(False)
    assert isinstance(replies[0], redis.exceptions.ReadOnlyError)
    assert guarded.finished == [("PIPELINE", "failure", "read-only")]
    guarded.close()


def test_after_a_read_only_answer_the_primary_is_looked_for_anew(own_server: RedisServer) -> None:
    guarded = Guarded(own_server.url)
    guarded.client.set("k", "v")
    read_only(own_server)
    with pytest.raises(RedisUnavailable):
        guarded.client.set("k", "v")
    with own_server.client() as client:
        before = client.info("stats")["total_connections_received"]
        client.replicaof("NO", "ONE")
    assert guarded.client.set("k", "v") is True
    with own_server.client() as client:
        # One of ours, and the one that asks.
        assert client.info("stats")["total_connections_received"] == before + 2
    guarded.close()


def test_a_revoked_user_is_refused_and_one_without_permission_gets_the_answer() -> None:
    with RedisServer(acl=["user app on >secret ~app:* +@all"]) as server:
        url = f"redis://app:secret@127.0.0.1:{server.port}/0"
        guarded = Guarded(url)
        assert guarded.client.set("app:k", "v") is True
        with pytest.raises(redis.exceptions.NoPermissionError):
            guarded.client.get("other")
        assert guarded.finished[-1] == ("GET", "success", None)
        with server.client() as client:
            client.acl_deluser("app")
        with pytest.raises(RedisUnavailable) as refusal:
            guarded.client.get("app:k")
        assert refusal.value.reason in ("authentication", "connection")
        with pytest.raises(RedisUnavailable) as refusal:
            guarded.client.get("app:k")
        assert refusal.value.reason == "authentication"
        assert "secret" not in str(refusal.value)
        guarded.close()


@pytest.mark.parametrize(
    "reply",
    [b":abc\r\n", b"$abc\r\n", b"*abc\r\n", b"?\r\n", b"*1\r\n" * 20_000],
    ids=["number", "length", "count", "type", "nesting"],
)
@pytest.mark.parametrize("parser", ["the default one", "python's"])
def test_what_is_no_resp_is_a_failure(reply: bytes, parser: str) -> None:
    options = {} if parser == "the default one" else {"parser_class": _RESP2Parser}
    with MalformedServer(reply) as server:
        guarded = Guarded(
            server.url, REDIS_GUARD_FAILURE_THRESHOLD=2, REDIS_GUARD_CLIENT_OPTIONS=options
        )
        for ask in (lambda: guarded.client.get("k"), guarded.client.pipeline().get("k").execute):
            with pytest.raises(RedisUnavailable) as refusal:
                ask()
            assert refusal.value.reason == "protocol"
        assert guarded.gate.breaker.state.value == "open"
        guarded.close()


def test_that_nobody_else_gets_in_is_no_outage_while_others_are_served(
    own_server: RedisServer,
) -> None:
    guarded = Guarded(own_server.url, REDIS_GUARD_FAILURE_THRESHOLD=1)
    pool = guarded.client.connection_pool
    guarded.client.ping()
    with own_server.client() as client:
        client.config_set("maxclients", len(client.client_list()))
        held = pool.get_connection("_")
        for _ in range(3):
            with pytest.raises(RedisUnavailable) as refusal:
                guarded.client.get("k")
            assert refusal.value.reason == "max-clients"
        assert guarded.gate.breaker.state.value == "closed"
        pool.release(held)
        assert guarded.client.get("k") is None
    guarded.close()


def test_a_connection_whose_handshake_nobody_has_read_is_made_anew(
    own_server: RedisServer,
) -> None:
    guarded = Guarded(own_server.url, REDIS_GUARD_FAILURE_THRESHOLD=1)
    pool = guarded.client.connection_pool
    pool.release(pool.get_connection("_"))  # connected, and nothing asked
    assert next(iter(pool._available_connections)).is_greeting
    own_server.restart()
    assert guarded.client.get("k") is None
    guarded.close()


def test_once_a_login_was_refused_no_command_follows_it(own_server: RedisServer) -> None:
    with own_server.client() as admin:
        admin.acl_setuser("app", enabled=True, passwords=["+old"], keys=["*"], categories=["+@all"])
        url = own_server.url.replace("://", "://app:old@")
        guarded = Guarded(url, **NEVER_OPENS)
        guarded.client.incr("n")
        admin.acl_setuser("app", passwords=["-old", "+new"])
        for _ in range(3):
            guarded.client.connection_pool.disconnect()
            with pytest.raises(RedisUnavailable) as refusal:
                guarded.client.incr("n")
            assert refusal.value.reason == "authentication"
        # The default user may write there: what came with the first refused login was carried out.
        assert int(admin.get("n") or 0) <= 2
    guarded.close()
