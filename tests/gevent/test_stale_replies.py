"""No reply goes to the wrong caller, however many are killed while they read."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support import ClusterSetup, Proxy, RedisServer, SentinelSetup, run_python

# Each of 100 greenlets asks 100 times for an echo of a number of its own: by a script, in a
# pipeline, in a transaction or while watching. Most are timed out or killed at random moments.
HAMMER = """
    from gevent import monkey; monkey.patch_all()
    import gevent, itertools, json, os, random
    from flask import Flask
    from flask_redis_guard import RedisGuard, RedisUnavailable

    app = Flask("hammer")
    app.config.update(
        REDIS_URL=os.environ["TEST_URL"],
        REDIS_GUARD_TIMEOUT=2,
        REDIS_GUARD_MAX_CONNECTIONS=12,
        REDIS_GUARD_HEALTH_CHECK_INTERVAL=0,
    )
    guard = RedisGuard(app)
    client = guard.client_for(app)
    cluster = not hasattr(client, "connection_pool")
    ECHO = "return ARGV[1]"
    counts = {"answered": 0, "interrupted": 0, "refused": 0, "wrong": 0}
    numbers = itertools.count()

    def ask():
        own = [str(next(numbers)).encode() for _ in range(3)]
        key = "{k%d}" % random.randrange(50)
        way = random.randrange(2 if cluster else 4)
        if way == 0:
            replies, own = [client.eval(ECHO, 1, key, own[0])], own[:1]
        elif way == 1:
            pipeline = client.pipeline(transaction=False)
            for number in own:
                pipeline.incrby("{n}" + number.decode(), int(number))
            replies, own = pipeline.execute(), [int(number) for number in own]
        elif way == 2:
            with client.pipeline() as pipeline:
                for number in own:
                    pipeline.eval(ECHO, 1, key, number)
                replies = pipeline.execute()
        else:
            with client.pipeline() as pipeline:
                pipeline.watch(key)
                replies = [pipeline.eval(ECHO, 1, key, own[0])]
                pipeline.multi()
                pipeline.eval(ECHO, 1, key, own[1])
                replies, own = replies + pipeline.execute(), own[:2]
        counts["answered" if replies == own else "wrong"] += 1

    def work(turns):
        for _ in turns:
            try:
                with gevent.Timeout(random.uniform(0, 0.15), False):
                    ask()
                    continue
                counts["interrupted"] += 1
            except RedisUnavailable:
                counts["refused"] += 1

    def stubborn():
        turns = iter(range(100))
        while True:
            worker = gevent.spawn(work, turns)
            worker.join(random.uniform(0, 0.5))
            if not worker.dead and random.random() < 0.8:
                worker.kill()
                counts["interrupted"] += 1
            worker.join()
            if next(turns, None) is None:
                return

    client.ping()
    gevent.joinall([gevent.spawn(stubborn) for _ in range(100)], raise_error=True)
    counts["state"] = guard.client_for(app).gate.breaker.state.value
    print(json.dumps(counts))
"""


@pytest.fixture
def slow_server(redis_server: RedisServer) -> Iterator[Proxy]:
    """Replies on their way for a while: the next caller has the connection before they arrive."""
    with Proxy(redis_server.port) as proxy:
        proxy.delay(0.002)
        yield proxy


@pytest.mark.parametrize("topology", ["slow_server", "sentinel_setup", "cluster_setup"])
def test_no_greenlet_gets_the_reply_of_another(
    topology: str, request: pytest.FixtureRequest
) -> None:
    setup: Proxy | SentinelSetup | ClusterSetup = request.getfixturevalue(topology)
    counts = json.loads(run_python(HAMMER, timeout=60, env={"TEST_URL": setup.url}))
    assert counts["wrong"] == 0
    assert counts["answered"] > 500, counts
    assert counts["interrupted"] > 500, counts
    assert counts["state"] == "closed", "killed greenlets say nothing about Redis"
