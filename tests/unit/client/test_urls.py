"""URLs of sentinels and clusters; none that cannot be read shows its password."""

from __future__ import annotations

from typing import Any

import pytest

from flask_redis_guard import ConfigurationError
from flask_redis_guard.client.topology.urls import parse_topology
from tests.support.guarded import Guarded


def test_a_url_of_sentinels_is_read_whole() -> None:
    topology = parse_topology(
        "rediss+sentinel://al%40ice:p%2Fw@s1:1,[::1]:2,s3/my%20master/4"
        "?sentinel_username=watch&sentinel_password=se%26cret&ssl_cert_reqs=none"
    )
    assert topology.tls
    assert topology.hosts == (("s1", 1), ("::1", 2), ("s3", 26379))
    assert topology.service == "my master"
    assert topology.options == {
        "username": "al@ice",
        "password": "p/w",
        "db": 4,
        "ssl_cert_reqs": "none",
    }
    assert topology.sentinel_options == {"username": "watch", "password": "se&cret"}


def test_a_url_of_a_cluster_is_read_whole() -> None:
    topology = parse_topology("redis+cluster://u:p@a:1,b/?decode_responses=true")
    assert (topology.kind, topology.tls) == ("cluster", False)
    assert topology.hosts == (("a", 1), ("b", 6379))
    assert topology.options["password"] == "p"


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://:secret@h:1",  # no name
        "redis+sentinel://:secret@h:1/",
        "redis+sentinel://:secret@h:1/name/x",
        "redis+sentinel://:secret@h:1/name/0/1",
        "redis+sentinel://:secret@h:1,,h:2/name",
        "redis+sentinel://:secret@h:99999/name",
        "redis+sentinel://:secret@h:0/name",
        "redis+sentinel://h:1/name?sentinel_password=secret&db=secret",
        "redis+sentinel://h:1/name?socket_timeout=3&password=secret",
        "redis+cluster://:secret@h:1/3",
        "redis+cluster://:secret@h:1/name",
        "redis+cluster://:secret@h:1:2",
        "redis+cluster://h:1?sentinel_password=secret",
        "redis+cluster://:secret@[::1:1",
        "redis+cluster://h:1?cache_config=secret",
    ],
)
def test_a_bad_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        Guarded(url)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("option", ["cache_config", "retry", "maint_notifications_config", "nope"])
def test_options_that_would_break_a_promise_are_refused(option: str) -> None:
    options: dict[str, Any] = {option: object()}
    for url in ("redis://h", "redis+sentinel://h/name", "redis+cluster://h"):
        with pytest.raises(ConfigurationError):
            Guarded(url, REDIS_GUARD_CLIENT_OPTIONS=options)


@pytest.mark.parametrize(
    "url", ["redis://h", "redis+sentinel://h/name", "redis+cluster://h", "rediss+cluster://h"]
)
def test_clients_are_made_without_io(url: str) -> None:
    import redis

    client = Guarded(url).client  # "h" is nobody's name
    assert isinstance(client, redis.RedisCluster if "cluster" in url else redis.Redis)
    assert repr(client)
    client.register_script("return 1")
    client.close()
