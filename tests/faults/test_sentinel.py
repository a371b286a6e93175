"""Sentinels replace a primary that goes on answering: what was acknowledged is kept, or refused."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator

import pytest
import redis

from flask_redis_guard import RedisUnavailable
from tests.support import RedisServer, SentinelSetup, eventually
from tests.support.guarded import NEVER_OPENS, Guarded
from tests.support.writers import Writers

pytestmark = pytest.mark.timing

PASSWORD = "data"
LISTENING = {"REDIS_GUARD_HEALTH_CHECK_INTERVAL": 0.5}


@pytest.fixture
def sentinels() -> Iterator[SentinelSetup]:
    with SentinelSetup(replicas=2, password=PASSWORD) as setup:
        yield setup


def on_server(server: RedisServer, keys: list[str]) -> set[str]:
    with server.client() as client:
        found = client.mget(keys)
    return {key for key, value in zip(keys, found, strict=True) if value is not None}


def is_replica(server: RedisServer) -> bool:
    try:
        with server.client() as client:
            role = client.info("replication")
    except redis.ConnectionError:  # it cuts its clients off as it becomes one
        return False
    return bool(role["role"] == "slave" and role["master_link_status"] == "up")


def test_a_planned_failover_loses_nothing_that_was_acknowledged(
    sentinels: SentinelSetup, capsys: pytest.CaptureFixture[str]
) -> None:
    guarded = Guarded(sentinels.url, **LISTENING)
    before = sentinels.primary()
    with Writers(guarded.client) as writers:
        eventually(lambda: len(writers.acknowledged) > 200, 10, "writers write")
        time.sleep(1)  # the listeners are connected
        sentinels.replace_primary()
        eventually(lambda: sentinels.primary() is not before, 10, "another primary")
        count = len(writers.acknowledged)
        eventually(lambda: len(writers.acknowledged) > count + 200, 10, "writes go on")
        time.sleep(2)  # while the old primary would take them, too
        assert not is_replica(before)
        sentinels.let_sentinels_talk(every_ms=100)
        eventually(lambda: is_replica(before), 30, "the old primary follows the new one")
    lost = set(writers.acknowledged) - on_server(sentinels.primary(), writers.acknowledged)
    moments = [at for at, _, _ in writers.refused]
    with capsys.disabled():
        print(
            f"\nplanned failover: {len(writers.acknowledged)} acknowledged, {len(lost)} lost, "
            f"{len(moments)} refused within {max(moments) - min(moments):.2f} s"
        )
    assert lost == set()
    assert writers.reasons <= {"failover", "connection"}
    guarded.close()


def test_the_client_follows_an_election_while_the_old_primary_refuses_writes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {"min-replicas-to-write": "1"}
    with SentinelSetup(replicas=2, password=PASSWORD, options=options) as sentinels:
        guarded = Guarded(sentinels.url, **LISTENING)
        before = sentinels.primary()
        with Writers(guarded.client) as writers:
            eventually(lambda: len(writers.acknowledged) > 100, 10, "writers write")
            time.sleep(1)
            cut = len(writers.acknowledged)
            sentinels.isolate(before)
            alone = len(writers.acknowledged)
            eventually(lambda: sentinels.primary() is not before, 20, "another primary")
            elected_at, count = time.monotonic(), len(writers.acknowledged)
            eventually(lambda: len(writers.acknowledged) > count, 10, "writes go on")
            served_after = time.monotonic() - elected_at
        with capsys.disabled():
            print(f"\npartition, min-replicas-to-write 1: {served_after:+.2f} s")
        assert "no-replicas" in writers.reasons
        lost = set(writers.acknowledged) - on_server(sentinels.primary(), writers.acknowledged)
        # Redis replicates after it has answered: what it answered as it was cut off may be lost,
        # at most one write of each writer.
        assert lost <= set(writers.acknowledged[cut - 5 : alone + 20])
        assert len(lost) <= len(writers.written_at)
        assert served_after < 1.5
        guarded.close()


def test_a_connection_in_use_does_not_come_back_after_a_change(sentinels: SentinelSetup) -> None:
    guarded = Guarded(sentinels.url, **LISTENING)
    before = sentinels.primary()
    pool = guarded.client.connection_pool
    with guarded.gate.begin("CHECK") as operation:
        held = pool.get_connection("SET")
        sentinels.replace_primary()
        eventually(lambda: operation.trust.revoked, 10, "the listeners hear of it")
        eventually(lambda: sentinels.primary() is not before, 10, "another primary")
        pool.release(held)
        assert held._sock is None
    guarded.gate.abandon(operation)
    eventually(lambda: answers(guarded.client), 10, "the new primary serves")
    for number in range(20):
        guarded.client.set(f"after:{number}", "1")
    assert len(on_server(sentinels.primary(), [f"after:{n}" for n in range(20)])) == 20
    guarded.close()


def test_a_subscriber_is_woken_by_a_change(sentinels: SentinelSetup) -> None:
    guarded = Guarded(sentinels.url, **LISTENING)
    before = sentinels.primary()
    subscriber = guarded.client.pubsub(ignore_subscribe_messages=True)
    subscriber.subscribe("news")
    assert subscriber.get_message(timeout=1) is None
    sentinels.isolate(before)  # which nobody tells the subscriber
    eventually(lambda: sentinels.primary() is not before, 20, "another primary")
    eventually(lambda: heard(subscriber, sentinels.primary()), 10, "news of the new primary")
    subscriber.close()
    guarded.close()


def heard(subscriber: redis.client.PubSub, primary: RedisServer) -> bool:
    with primary.client() as client:
        client.publish("news", "text")
    try:
        return subscriber.get_message(timeout=0.1) is not None
    except RedisUnavailable:
        return False


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize(
    ("lost", "how", "refuses"),
    [(3, "pause", True), (3, "kill", True), (2, "pause", True), (2, "kill", False)],
)
def test_a_primary_is_trusted_only_so_long(
    sentinels: SentinelSetup, lost: int, how: str, refuses: bool, background: bool
) -> None:
    """A sentinel that was killed elects nobody elsewhere, one that cannot be seen may."""
    interval = LISTENING if background else {}
    settings = {**interval, **NEVER_OPENS, "REDIS_GUARD_SENTINEL_TRUST_SECONDS": 2}
    guarded = Guarded(sentinels.url, **settings)
    guarded.client.set("k", "v")
    for sentinel in sentinels.sentinels[:lost]:
        getattr(sentinel, how)()
    trusted_until = time.monotonic() + 1.5
    while time.monotonic() < trusted_until:
        assert answers(guarded.client) or not background
        time.sleep(0.1)
    if not refuses:
        time.sleep(3)
        assert all(answers(guarded.client) for _ in range(20))
    else:
        eventually(lambda: not answers(guarded.client), 5, "refused")
        with pytest.raises(RedisUnavailable) as refusal:
            guarded.client.get("k")
        assert refusal.value.reason == "unconfirmed"
        for sentinel in sentinels.sentinels[:lost]:
            sentinel.resume() if how == "pause" else sentinel.start()
        eventually(lambda: answers(guarded.client), 5, "trusted again")
    guarded.close()


def answers(client: redis.Redis) -> bool:
    try:
        client.set("k", "v")
    except RedisUnavailable:
        return False
    return True


def test_an_app_that_nobody_knows_any_more_is_freed(sentinels: SentinelSetup) -> None:
    guarded = Guarded(sentinels.url, **LISTENING)
    guarded.client.set("k", "v")
    freed = weakref.ref(guarded.client)
    guarded.app.extensions["redis_guard"].monitor.stop()
    guarded.close()
    del guarded
    eventually(lambda: gc.collect() is not None and freed() is None, 10, "the client is freed")
    eventually(lambda: not listeners(), 10, "nobody listens any more")


def listeners() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name == "redis-guard-sentinel"]
