"""Sessions on Redis Cluster: what must be one script shares a slot, the rest has an order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis.cluster import RedisCluster

from flask_redis_guard import SessionStore
from flask_redis_guard.sessions.codec import Change, Saved, encode
from flask_redis_guard.sessions.ids import new_id
from tests.support import ClusterSetup
from tests.support.session_apps import session_app

from .conftest import cookie_of


@pytest.fixture
def cluster(cluster_setup: ClusterSetup) -> Iterator[RedisCluster]:
    with cluster_setup.client() as client:
        client.flushall(target_nodes=RedisCluster.PRIMARIES)
        yield client


@pytest.fixture
def store(cluster: RedisCluster) -> SessionStore:
    return SessionStore(cluster, max_per_user=30)


def slots(cluster: RedisCluster) -> set[int]:
    keys = cluster.keys("*", target_nodes=RedisCluster.PRIMARIES)
    return {cluster.keyslot(key) for key in keys}


def test_a_users_sessions_share_a_slot_and_are_revoked_at_once(
    store: SessionStore, cluster: RedisCluster
) -> None:
    tokens = [store.new_id(5) for _ in range(40)]
    for token in tokens:
        store.set(token, {"a": 1})
    assert len(slots(cluster)) == 1
    assert sum(store.get(token) is not None for token in tokens) == 30
    assert store.revoke_user(5) == 30
    assert slots(cluster) == set()


def test_sessions_of_nobody_are_spread(store: SessionStore, cluster: RedisCluster) -> None:
    for _ in range(40):
        store.set(store.new_id(), {"a": 1})
    assert len(slots(cluster)) > 20


def test_an_id_and_its_successor_share_a_slot(store: SessionStore, cluster: RedisCluster) -> None:
    old = new_id()
    new = new_id(after=old)
    fields = encode({"a": 1, "b": 2})
    store.create(old, fields, 60_000)
    moved = store.move(old, new, fields, Change(encode({"b": 3})), 60_000)
    assert moved is Saved.STORED
    assert store.get(old) is None
    assert store.get(new) == {"a": 1, "b": 3}
    assert store.move(old, new_id(after=old), fields, Change({}), 60_000) is Saved.ENDED
    assert len(slots(cluster)) == 1


def test_login_moves_a_session_to_the_slot_of_its_user(store: SessionStore) -> None:
    old, new = new_id(), new_id(5)
    known = encode({"a": 1, "b": 2, "c": 3, "d": 4})
    store.create(old, known, 60_000)
    # What another request does after this one has read, and was told is saved.
    store.change(old, Change(encode({"b": 20, "e": 5}), list(encode({"c": 0}))), 60_000)
    change = Change(encode({"user": 5}), list(encode({"d": 0})))
    assert store.move(old, new, known, change, 60_000) is Saved.STORED
    assert store.get(old) is None
    assert store.get(new) == {"a": 1, "b": 20, "e": 5, "user": 5}
    assert store.revoke_user(5) == 1
    assert store.get(new) is None


def test_login_after_clearing_brings_nothing_along(store: SessionStore) -> None:
    old, new = new_id(), new_id(5)
    known = encode({"a": 1})
    store.create(old, known, 60_000)
    store.change(old, Change(encode({"b": 2})), 60_000)
    change = Change(encode({"user": 5}), wipe=True)
    assert store.move(old, new, known, change, 60_000) is Saved.STORED
    assert store.get(new) == {"user": 5}


def test_login_does_not_bring_back_a_session_that_ended(
    store: SessionStore, cluster: RedisCluster
) -> None:
    old, new = new_id(), new_id(5)
    known = encode({"a": 1})
    store.create(old, known, 60_000)
    store.delete(old)
    assert store.move(old, new, known, Change(encode({"user": 5})), 60_000) is Saved.ENDED
    assert store.get(new) is None
    assert slots(cluster) == set()


def test_a_session_emptied_on_the_way_is_gone(store: SessionStore, cluster: RedisCluster) -> None:
    old, new = new_id(), new_id(5)
    known = encode({"a": 1})
    store.create(old, known, 60_000)
    moved = store.move(old, new, known, Change({}, list(known)), 60_000)
    assert moved is Saved.EMPTIED
    assert slots(cluster) == set()


def test_the_interface_on_a_cluster(cluster_setup: ClusterSetup, cluster: RedisCluster) -> None:
    app, guard = session_app(cluster_setup.url, REDIS_GUARD_TIMEOUT=2)
    client = app.test_client()
    assert client.post("/write", json={"cart": [1]}).status_code == 200
    planted = app.test_client()
    planted.set_cookie("session", cookie_of(client))
    assert client.post("/login/5").status_code == 200
    assert planted.get("/read").json == {}
    assert client.get("/read").json == {"cart": [1], "user": "5"}
    assert client.post("/regenerate").status_code == 200
    assert client.post("/remove/cart").status_code == 200
    assert client.get("/read").json == {"user": "5"}
    assert guard.sessions_for(app).revoke_user(5) == 1
    assert client.get("/read").json == {}
    assert slots(cluster) == set()
