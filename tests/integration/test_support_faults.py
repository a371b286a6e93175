"""The misbehaving peers misbehave as they say."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import redis

from tests.support import (
    DrippingServer,
    HandshakeStaller,
    Proxy,
    RedisServer,
    SilentServer,
    TLSIdentity,
    eventually,
    run_python,
)


def client_of(url: str, timeout: float = 0.3) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=timeout, retry=None)


@pytest.mark.parametrize("peer", [SilentServer, HandshakeStaller])
def test_silent_peer_lets_a_client_time_out(peer: type[SilentServer]) -> None:
    with peer() as server:
        client = client_of(server.url)
        with pytest.raises(redis.TimeoutError):
            client.ping()
        assert server.accepted == 1


def test_dripping_peer_outlives_a_timeout_for_each_read() -> None:
    with DrippingServer(0.05, drip_handshake=False) as server:
        assert client_of(server.url).ping() is True
        assert client_of(server.url).echo("ab") == b"ab"


def test_closed_peers_leave_no_thread() -> None:
    before = threading.active_count()
    with SilentServer() as silent, DrippingServer() as dripping:
        for server in (silent, dripping):
            with pytest.raises(redis.TimeoutError):
                client_of(server.url, 0.05).ping()
    assert threading.active_count() == before


def test_proxy_cuts_with_a_reset_and_forwards_the_next(redis_server: RedisServer) -> None:
    with Proxy(redis_server.port) as proxy:
        connection = redis.Connection(host="127.0.0.1", port=proxy.port)
        connection.send_command("PING")
        assert connection.read_response() == b"PONG"
        proxy.cut()
        with pytest.raises(redis.ConnectionError, match="reset"):
            connection.send_command("PING")
        assert client_of(proxy.url).ping()
        assert proxy.accepted == 2


def test_proxy_hangs_and_hands_on_what_it_held(redis_server: RedisServer) -> None:
    with Proxy(redis_server.port) as proxy:
        connection = redis.Connection(host="127.0.0.1", port=proxy.port, socket_timeout=5)
        connection.connect()
        proxy.hang()
        connection.send_command("PING")
        assert not connection.can_read(timeout=0.2)
        assert proxy.open == 1
        proxy.resume()
        assert connection.read_response() == b"PONG"
        connection.disconnect()
        eventually(lambda: proxy.open == 0)


def test_proxy_cuts_within_a_reply(redis_server: RedisServer) -> None:
    redis_server.client().set("k", "v" * 1000)
    with Proxy(redis_server.port) as proxy:
        client = client_of(proxy.url)
        client.ping()
        proxy.cut_after(500)
        with pytest.raises(redis.ConnectionError):
            client.get("k")
        assert client.get("k") == b"v" * 1000


def test_proxy_refuses_connections_until_it_listens_again(redis_server: RedisServer) -> None:
    with Proxy(redis_server.port) as proxy:
        client = client_of(proxy.url)
        client.ping()
        proxy.refuse()
        for _ in range(2):
            with pytest.raises(redis.ConnectionError):
                client.ping()
        proxy.listen()
        assert client.ping()


def test_proxy_swallows_and_resets_what_lost_something(redis_server: RedisServer) -> None:
    with Proxy(redis_server.port) as proxy:
        client, idle = client_of(proxy.url, 0.2), client_of(proxy.url)
        client.set("k", "before")
        idle.ping()
        proxy.swallow()
        with pytest.raises(redis.TimeoutError):
            client.set("k", "lost")
        proxy.resume()
        assert idle.ping()
        assert client.get("k") == b"before"


def test_proxy_cuts_each_connection_after_so_many_bytes(redis_server: RedisServer) -> None:
    redis_server.client().set("k", "v" * 1000)
    with Proxy(redis_server.port) as proxy:
        proxy.cut_each(500, 500)
        for _ in range(3):
            with pytest.raises(redis.ConnectionError):
                client_of(proxy.url).get("k")
        proxy.resume()
        assert client_of(proxy.url).get("k") == b"v" * 1000


def test_proxy_fails_some_and_garbles_all(redis_server: RedisServer) -> None:
    with Proxy(redis_server.port) as proxy:
        proxy.fail_some(1.0)
        with pytest.raises(redis.ConnectionError):
            client_of(proxy.url).ping()
        proxy.resume()
        client = client_of(proxy.url)
        client.ping()
        proxy.garble_all(b"?what\r\n")
        for _ in range(2):
            with pytest.raises(redis.RedisError):
                client.ping()
        proxy.resume()
        assert client_of(proxy.url).ping()


def test_proxy_delays_what_is_under_way_at_the_same_time(redis_server: RedisServer) -> None:
    with Proxy(redis_server.port) as proxy:
        connection = redis.Connection(host="127.0.0.1", port=proxy.port, socket_timeout=5)
        connection.connect()
        proxy.delay(0.1)
        began = time.monotonic()
        for _ in range(5):
            connection.send_command("PING")
            assert not connection.can_read(0.01)
        assert [connection.read_response() for _ in range(5)] == [b"PONG"] * 5
        assert 0.2 <= time.monotonic() - began < 0.5
        connection.disconnect()


def test_proxy_speaks_tls(redis_server: RedisServer, tmp_path: Path) -> None:
    with Proxy(redis_server.port, tls=TLSIdentity(str(tmp_path))) as proxy:
        client = client_of(proxy.url, 5)
        big = b"v" * 300_000
        assert client.set("k", big)
        assert client.get("k") == big
        proxy.cut()
        assert proxy.open == 0


def test_peers_work_within_a_patched_process() -> None:
    run_python(
        """
        from gevent import monkey; monkey.patch_all()
        import redis
        from tests.support import Proxy, RedisServer, SilentServer
        with RedisServer() as server, Proxy(server.port) as proxy, SilentServer() as silent:
            assert redis.Redis.from_url(proxy.url).ping()
            proxy.cut()
            try:
                redis.Redis.from_url(silent.url, socket_timeout=0.1, retry=None).ping()
            except redis.TimeoutError:
                print("silent")
        """
    )
