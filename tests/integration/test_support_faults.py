"""The misbehaving peers misbehave as they say."""

from __future__ import annotations

import threading
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
