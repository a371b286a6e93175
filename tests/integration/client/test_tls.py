"""Over TLS everything is as without it: one connection serves many operations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from redis import _parsers

from flask_redis_guard import RedisUnavailable
from tests.support import Proxy, RedisServer, TLSIdentity
from tests.support.guarded import NEVER_OPENS, PROTOCOLS, Guarded

PARSERS: list[Any] = [_parsers._RESP2Parser]
try:
    import hiredis  # noqa: F401
except ImportError:
    pass
else:
    PARSERS.append(_parsers._HiredisParser)


@pytest.fixture
def tls(tmp_path: Path) -> TLSIdentity:
    return TLSIdentity(str(tmp_path))


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_connection_is_used_again(
    parser: Any, protocol: int, tls: TLSIdentity, redis_server: RedisServer
) -> None:
    with Proxy(redis_server.port, tls=tls) as proxy:
        options = {"parser_class": parser, "protocol": protocol}
        guarded = Guarded(proxy.url, REDIS_GUARD_TIMEOUT=5, REDIS_GUARD_CLIENT_OPTIONS=options)
        big = b"x" * 300_000  # many records
        guarded.client.set("big", big)
        assert [guarded.client.echo(str(n)) for n in range(20)] == [b"%d" % n for n in range(20)]
        assert guarded.client.get("big") == big
        with guarded.client.pubsub() as subscriber:
            subscriber.subscribe("channel")
            assert subscriber.get_message(timeout=5)["type"] == "subscribe"
            assert subscriber.get_message(timeout=0) is None
            guarded.client.publish("channel", "said")
            assert subscriber.get_message(timeout=5)["data"] == b"said"
        assert proxy.accepted == 2
        assert {outcome for _, outcome, _ in guarded.finished} <= {"success", "neutral"}
        guarded.close()


def test_a_reply_that_is_owed_goes_to_nobody_else(
    tls: TLSIdentity, redis_server: RedisServer
) -> None:
    with Proxy(redis_server.port, tls=tls) as proxy:
        options = {"REDIS_GUARD_TIMEOUT": 1, "REDIS_GUARD_MAX_CONNECTIONS": 1, **NEVER_OPENS}
        guarded = Guarded(proxy.url, **options)
        guarded.client.ping()
        for number in range(2):
            proxy.hang()
            with pytest.raises(RedisUnavailable):
                guarded.client.echo("late")
            proxy.resume()
            own = str(number).encode()
            assert guarded.client.echo(own) == own
        guarded.close()


def test_certificates_are_read_once_and_again_when_replaced(
    tls: TLSIdentity, redis_server: RedisServer, tmp_path: Path
) -> None:
    with Proxy(redis_server.port, tls=tls) as proxy:
        guarded = Guarded(proxy.url, REDIS_GUARD_TIMEOUT=5)
        pool = guarded.client.connection_pool
        held = [pool.get_connection("_") for _ in range(3)]
        contexts = [connection._sock.context for connection in held]
        assert contexts[0] is contexts[1] is contexts[2]
        for connection in held:
            pool.release(connection)
        pool.disconnect()
        TLSIdentity(str(tmp_path))  # another authority, in the same file
        with pytest.raises(RedisUnavailable) as refusal:
            guarded.client.ping()
        assert "CERTIFICATE_VERIFY_FAILED" in str(refusal.value.__cause__)
        guarded.close()


def test_a_certificate_is_for_a_host(tls: TLSIdentity, redis_server: RedisServer) -> None:
    with Proxy(redis_server.port, tls=tls) as proxy:
        guarded = Guarded(proxy.url.replace("127.0.0.1", "127.1"), REDIS_GUARD_TIMEOUT=5)
        for _ in range(2):
            with pytest.raises(RedisUnavailable) as refusal:
                guarded.client.ping()
            assert "mismatch" in str(refusal.value.__cause__)
        guarded.close()
        pool = Guarded(proxy.url, REDIS_GUARD_TIMEOUT=5).client.connection_pool
        pool.release(pool.get_connection("_"))  # which keeps the context
        elsewhere = pool.connection_class(**{**pool.connection_kwargs, "host": "127.1"})
        with pytest.raises(RedisUnavailable) as refusal:
            elsewhere.connect()
        assert "mismatch" in str(refusal.value.__cause__)
        pool.disconnect()
        url = proxy.url.replace("127.0.0.1", "127.1") + "&ssl_cert_reqs=none"
        lax = Guarded(url, REDIS_GUARD_TIMEOUT=5)
        assert lax.client.ping()
        guarded = lax
        guarded.close()
