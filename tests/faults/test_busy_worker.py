"""A worker that computes is no outage of Redis: nobody is refused while Redis could answer."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support import GunicornApp, Proxy, RedisServer

pytestmark = pytest.mark.timing

APP = """
    import os, time
    from flask import Flask
    from flask_redis_guard import RedisGuard

    app = Flask(__name__)
    guard = RedisGuard(app)

    def compute(seconds):
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    @app.get("/")
    def index():
        return "up"

    @app.get("/work/<int:milliseconds>")
    def work(milliseconds):
        compute(milliseconds / 1000)
        guard.client.incr("a")
        guard.client.incr("b")
        return "done"

    @app.get("/pid")
    def pid():
        return str(os.getpid())

    @app.get("/block")
    def block():
        compute(1.2)
        return "done"
"""


@contextmanager
def served(url: str, worker_class: str, **env: str) -> Iterator[GunicornApp]:
    """The app, on one worker with default settings."""
    threads = 40 if worker_class == "gthread" else None
    arguments = ("--backlog", "2048", "--worker-connections", "1000")
    env = {"REDIS_URL": url, "ENVIRONMENT": "production", **env}
    with GunicornApp(
        APP, worker_class=worker_class, threads=threads, arguments=arguments, env=env
    ) as app:
        yield app


def at_once(app: GunicornApp, *paths: str) -> dict[int, int]:
    """Send all requests at once, and return how often each status was the answer."""
    statuses: Counter[int] = Counter()
    barrier = threading.Barrier(len(paths))

    def ask(path: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", app.port, timeout=60)
        barrier.wait()
        connection.request("GET", path)
        statuses[connection.getresponse().status] += 1
        connection.close()

    threads = [threading.Thread(target=ask, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return dict(statuses)


@pytest.mark.parametrize(
    ("worker_class", "requests", "milliseconds", "warm"),
    [
        ("gevent", 60, 10, False),
        ("gevent", 200, 2, False),
        ("gevent", 300, 2, True),
        ("gthread", 500, 2, False),
    ],
)
def test_a_crowd_is_served(
    worker_class: str, requests: int, milliseconds: int, warm: bool, redis_server: RedisServer
) -> None:
    path = f"/work/{milliseconds}"
    with served(redis_server.url, worker_class) as app:
        if warm:
            at_once(app, *["/work/0"] * 64)
        assert at_once(app, *[path] * requests) == {200: requests}, app.log()
        assert redis_server.client().get("a") == redis_server.client().get("b")


def test_a_view_that_blocks_the_hub_is_no_outage(redis_server: RedisServer) -> None:
    with served(redis_server.url, "gevent") as app:
        paths = ["/work/1"] * 20 + ["/block"] + ["/work/1"] * 20
        assert at_once(app, *paths) == {200: len(paths)}, app.log()


@pytest.mark.parametrize("worker_class", ["gevent", "gthread"])
def test_a_worker_that_was_stopped_blames_nobody(
    worker_class: str, redis_server: RedisServer
) -> None:
    with Proxy(redis_server.port) as proxy, served(proxy.url, worker_class) as app:
        worker = int(app.get("/pid").text)
        proxy.delay(0.1)  # so long each way that many replies are under way
        stopper = threading.Timer(0.25, os.kill, (worker, signal.SIGSTOP))
        starter = threading.Timer(1.25, os.kill, (worker, signal.SIGCONT))
        stopper.start()
        starter.start()
        assert at_once(app, *["/work/1"] * 20) == {200: 20}, app.log()


@pytest.mark.parametrize("worker_class", ["gevent", "gthread"])
def test_a_server_that_hangs_is_still_found_out(worker_class: str, own_server: RedisServer) -> None:
    with served(own_server.url, worker_class) as app:
        assert at_once(app, *["/work/1"] * 20) == {200: 20}
        own_server.pause()
        began = time.monotonic()
        assert at_once(app, *["/work/1"] * 20) == {503: 20}
        assert time.monotonic() - began < 1.5
        assert "open" in app.log()
