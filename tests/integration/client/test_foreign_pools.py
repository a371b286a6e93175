"""A client of the guarded client's class, on a pool that redis-py made, serves and is guarded."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from redis.sentinel import Sentinel, SentinelConnectionPool

from flask_redis_guard import CircuitOpen, RedisUnavailable
from tests.support import RedisServer, SentinelSetup
from tests.support.guarded import Guarded


def opened(client: Any) -> bool:
    """Whether its breaker opens when its server is gone."""
    for _ in range(5):
        with pytest.raises(RedisUnavailable):
            client.get("k")
    with pytest.raises(CircuitOpen):
        client.get("k")
    return True


def test_a_pool_of_the_clients_own_connections(own_server: RedisServer) -> None:
    # As RQ's scheduler and its worker pool do.
    guarded = Guarded(own_server.url)
    pool = guarded.client.connection_pool
    theirs: Any = redis.ConnectionPool(
        connection_class=pool.connection_class, **pool.connection_kwargs
    )
    client = type(guarded.client)(connection_pool=theirs)
    assert client.set("k", "v") is True
    assert client.pipeline().get("k").execute() == [b"v"]
    assert client.gate is guarded.gate
    own_server.kill()
    assert opened(client)
    assert guarded.gate.breaker.state.value == "open"


@pytest.mark.parametrize("pool_class", [redis.ConnectionPool, redis.BlockingConnectionPool])
def test_a_plain_pool_to_the_same_server(pool_class: Any, own_server: RedisServer) -> None:
    guarded = Guarded(own_server.url)
    theirs = pool_class(host="127.0.0.1", port=own_server.port, retry_on_error=[OSError])
    client = type(guarded.client)(connection_pool=theirs)
    assert client.set("k", "v") is True
    assert type(guarded.client)(connection_pool=theirs).connection_pool is client.connection_pool
    own_server.kill()
    assert opened(client)
    assert guarded.gate.breaker.state.value == "open"


def test_another_server_has_a_breaker_of_its_own(
    redis_server: RedisServer, own_server: RedisServer
) -> None:
    guarded = Guarded(redis_server.url)
    client = type(guarded.client).from_url(own_server.url)
    assert client.set("k", "v") is True
    own_server.kill()
    assert opened(client)
    assert guarded.client.set("k", "v") is True


def test_a_client_of_that_class_by_host_and_port(redis_server: RedisServer) -> None:
    guarded = Guarded(redis_server.url)
    client = type(guarded.client)(host="127.0.0.1", port=redis_server.port)
    assert client.set("k", "v") is True
    assert client.gate is guarded.gate


def test_a_sentinels_pool() -> None:
    with SentinelSetup() as setup:
        hosts = [("127.0.0.1", server.port) for server in setup.sentinels]
        theirs: Any = SentinelConnectionPool(setup.name, Sentinel(hosts))
        guarded = Guarded("redis://127.0.0.1:1/0")
        client = type(guarded.client)(connection_pool=theirs)
        assert client.set("k", "v") is True
        assert client.get("k") == b"v"


@pytest.mark.parametrize("made", ["client", "class", "pool"])
def test_the_in_memory_store(made: str) -> None:
    guarded = Guarded("memory://", ENVIRONMENT="development")
    pool = guarded.client.connection_pool
    if made == "client":
        client = guarded.client.client()
    elif made == "class":
        client = type(guarded.client)(connection_pool=pool, single_connection_client=True)
    else:
        theirs: Any = redis.ConnectionPool(
            connection_class=pool.connection_class, **pool.connection_kwargs
        )
        client = type(guarded.client)(connection_pool=theirs)
    with client:
        assert client.set("k", "v") is True
        assert client.get("k") == guarded.client.get("k") == b"v"


def test_a_client_with_one_connection_follows_to_the_in_memory_store_and_back(
    own_server: RedisServer,
) -> None:
    guarded = Guarded(own_server.url, ENVIRONMENT="development", REDIS_GUARD_OPEN_SECONDS=0.2)
    client = guarded.client.client()
    assert client.set("k", "real") is True
    own_server.kill()
    assert client.get("k") is None
    assert client.set("k", "stored") is True
    own_server.start()
    guarded.gate.breaker.reset()
    assert client.get("k") is None
    assert client.set("k", "real again") is True
    assert own_server.client().get("k") == "real again"


def test_a_connection_put_into_a_client_with_one_of_its_own_serves_it(
    redis_server: RedisServer,
) -> None:
    # As redis-py's tests do with a mock.
    guarded = Guarded(redis_server.url)
    client = guarded.client.client()
    theirs: Any = redis.Connection(port=redis_server.port, client_name="theirs")
    client.connection = theirs
    assert client.client_getname() in ("theirs", b"theirs")
    assert client.connection is theirs
    assert guarded.finished[-1] == ("CLIENT GETNAME", "success", None)
    client.close()  # it is not the pool's, which leaves it alone
    theirs.disconnect()
