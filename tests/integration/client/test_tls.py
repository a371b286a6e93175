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
        options = {"REDIS_GUARD_TIMEOUT": 0.3, "REDIS_GUARD_MAX_CONNECTIONS": 1, **NEVER_OPENS}
        guarded = Guarded(proxy.url, **options)
        guarded.client.ping()
        for number in range(3):
            proxy.hang()
            with pytest.raises(RedisUnavailable):
                guarded.client.echo("late")
            proxy.resume()
            own = str(number).encode()
            assert guarded.client.echo(own) == own
        guarded.close()
