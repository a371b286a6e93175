"""What may come between commands and their replies: pushes of RESP3, and states that last."""

from __future__ import annotations

from typing import Any

import pytest
from redis.connection import DefaultParser

from flask_redis_guard import ConfigurationError, RateLimiter
from tests.support import RedisServer, eventually
from tests.support.guarded import Guarded


@pytest.mark.parametrize("protocol", ["4", "x", "", "1"])
def test_a_protocol_that_there_is_not_stops_the_start(protocol: str) -> None:
    with pytest.raises(ConfigurationError, match="protocol"):
        Guarded("redis://127.0.0.1:1/0", REDIS_GUARD_CLIENT_OPTIONS={"protocol": protocol})


@pytest.mark.parametrize("option", ["cache", "cache_config", "maint_notifications_config"])
def test_what_cannot_be_made_safe_stops_the_start(option: str) -> None:
    with pytest.raises(ConfigurationError, match=option):
        Guarded("redis://127.0.0.1:1/0", REDIS_GUARD_CLIENT_OPTIONS={option: object()})


def resp3(server: RedisServer) -> Guarded:
    """A guard that speaks RESP3, which a parser that takes pushes for replies may not."""
    try:
        return Guarded(server.url + "?protocol=3")
    except ConfigurationError:
        assert DefaultParser.__name__ == "_HiredisParser"
        pytest.skip("this hiredis and redis-py do not know pushes, and the guard says so")


def test_pushes_are_no_replies(redis_server: RedisServer) -> None:
    guarded = resp3(redis_server)
    for _ in range(3):
        pipeline = guarded.client.pipeline(transaction=False)
        pipeline.execute_command("CLIENT", "TRACKING", "ON")
        pipeline.get("k").set("k", "v").echo("1").echo("2")  # SET makes it push an invalidation
        assert pipeline.execute()[3:] == [b"1", b"2"]
        assert guarded.client.echo("next") == b"next"
    guarded.close()


def test_limits_and_sessions_over_resp3(redis_server: RedisServer) -> None:
    guarded = resp3(redis_server)
    limiter = RateLimiter(guarded.client)
    decisions = [limiter.hit("2/minute; 5/hour", "somebody") for _ in range(3)]
    assert [decision.allowed for decision in decisions] == [True, True, False]
    assert decisions[-1].retry_after > 0
    with guarded.app.app_context():
        store = guarded.guard.sessions
        store.set("id", {"user": 7, "names": ["a", "ö"]})
        assert store.get("id") == {"user": 7, "names": ["a", "ö"]}
        store.delete("id")
        assert store.get("id") is None
    assert {outcome for _, outcome, _ in guarded.finished} == {"success"}
    guarded.close()


LASTING: dict[str, tuple[Any, ...]] = {
    "another database": ("SELECT", 1),
    "queues everything": ("MULTI",),
    "messages among replies": ("SUBSCRIBE", "channel"),
    "all commands of others": ("MONITOR",),
    "in the middle of a pipeline": ("SELECT", 2),
    "left open by a pipeline": ("MULTI",),
}


@pytest.mark.parametrize("what", LASTING)
def test_what_a_command_makes_of_a_connection_ends_with_its_caller(
    what: str, redis_server: RedisServer
) -> None:
    guarded = Guarded(redis_server.url, REDIS_GUARD_MAX_CONNECTIONS=1)
    before = guarded.client.client_id()
    if "pipeline" in what:
        guarded.client.pipeline(transaction=False).execute_command(*LASTING[what]).execute()
    else:
        guarded.client.execute_command(*LASTING[what])
    info = guarded.client.client_info()
    assert (info["id"] != before, info["db"], info["multi"], info["sub"]) == (True, 0, -1, 0)
    with redis_server.client() as other:
        eventually(lambda: other.client_list(client_id=[str(before)]) == [], message="it is closed")
    guarded.close()


def test_a_transaction_keeps_its_connection(redis_server: RedisServer) -> None:
    guarded = Guarded(redis_server.url)
    before = guarded.client.client_id()
    guarded.client.transaction(lambda pipeline: pipeline.multi() or pipeline.incr("k"), "k")
    guarded.client.pipeline().incr("k").execute()
    assert guarded.client.client_id() == before
    guarded.close()
