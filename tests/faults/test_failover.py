"""A real primary dies behind Sentinel and in a cluster: 503 for a while, then 200, no restart."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask

from flask_redis_guard import RedisGuard, rate_limited
from tests.support import ClusterSetup, SentinelSetup, eventually

pytestmark = pytest.mark.timing

KEYS = [f"key:{number}" for number in range(30)]


def make_app(url: str) -> tuple[Flask, RedisGuard]:
    app = Flask("failover")
    app.config.update(
        REDIS_URL=url,
        REDIS_GUARD_OPEN_SECONDS=0.5,
        REDIS_GUARD_HEALTH_CHECK_INTERVAL=0.2,
    )
    guard = RedisGuard(app)

    @app.get("/")
    @rate_limited("100000/minute")
    def write() -> str:
        for key in KEYS:  # on a cluster: on every primary
            guard.client.set(key, "value")
        return "written"

    return app, guard


def statuses(app: Flask) -> int:
    return app.test_client().get("/").status_code


@pytest.fixture
def sentinels() -> Iterator[SentinelSetup]:
    with SentinelSetup(password="data p@ss", sentinel_password="sentinel:p/ss") as setup:
        yield setup


@pytest.fixture
def cluster() -> Iterator[ClusterSetup]:
    with ClusterSetup(password="cluster p@ss") as setup:
        yield setup


def test_a_killed_primary_behind_sentinels_is_replaced(sentinels: SentinelSetup) -> None:
    url = with_login(sentinels.url, "data p@ss", "data%20p%40ss")
    app, _ = make_app(url + "?sentinel_password=sentinel%3Ap%2Fss")
    sentinels.sentinels[0].pause()  # the first one to be asked
    assert statuses(app) == 200
    sentinels.sentinels[0].resume()
    dead = sentinels.primary()
    dead.kill()
    assert statuses(app) == 503
    eventually(lambda: statuses(app) == 200, 20, "the new primary serves")
    # A sentinel that did not lead the failover may learn of it after the client.
    eventually(lambda: sentinels.primary() is not dead, 10, "all sentinels agree")
    stop(app)


@pytest.mark.parametrize("fault", ["kill", "pause"])
def test_a_lost_primary_of_a_cluster_is_replaced(cluster: ClusterSetup, fault: str) -> None:
    app, guard = make_app(with_login(cluster.url, "cluster p@ss", "cluster%20p%40ss"))
    # redis-py 5.0 begins with all of COMMAND: on a busy machine that alone outlasts the deadline.
    eventually(lambda: statuses(app) == 200, 20, "the cluster is found")
    victim = cluster.primary_of(KEYS[0])
    getattr(victim, fault)()
    assert statuses(app) == 503
    eventually(lambda: statuses(app) == 200, 25, "the promoted replica serves")
    with app.app_context():
        assert guard.breaker.state.value == "closed"
    stop(app)


def with_login(url: str, password: str, quoted: str) -> str:
    return url.replace(f":{password}@", f":{quoted}@")


def stop(app: Flask) -> None:
    app.extensions["redis_guard"].monitor.stop()
