"""Requests are served again soon after Redis is, whatever the outage's length and kind."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
from flask import Flask

from flask_redis_guard import CircuitOpen, CircuitState, RedisGuard, RedisUnavailable, runtime
from flask_redis_guard.events import Checked, RedisFailed, Transition
from tests.support import GunicornApp, Proxy, RedisServer, eventually, run_python

#: Seconds after Redis's return within which requests are served, and some for a busy machine.
SOON = 1.5


def make_app(url: str, **settings: Any) -> Flask:
    app = Flask("recovery")
    app.config.update({"REDIS_URL": url, "REDIS_GUARD_HEALTH_CHECK_INTERVAL": 0, **settings})
    RedisGuard(app)
    return app


class Story:
    """An app, and what its bus told, with the seconds since its beginning."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.app = make_app(url, **settings)
        self.runtime = runtime.of(self.app)
        self.client: Any = self.runtime.client
        self.breaker = self.runtime.breaker
        self.checks: list[Checked] = []
        self.failures: list[RedisFailed] = []
        self.transitions: list[Transition] = []
        self.runtime.bus.subscribe(Checked, self.checks.append)
        self.runtime.bus.subscribe(RedisFailed, self.failures.append)
        self.runtime.bus.subscribe(Transition, self.transitions.append)

    def open(self) -> None:
        for _ in range(5):
            with pytest.raises(RedisUnavailable):
                self.client.incr("key")
        assert self.breaker.state is CircuitState.OPEN

    def served(self) -> bool:
        try:
            self.client.incr("key")
        except CircuitOpen:
            return False
        return True


@contextmanager
def told_within(seconds: float) -> Iterator[None]:
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < seconds


@pytest.mark.timing
@pytest.mark.parametrize("interval", [0, 5])
def test_restarted_server_is_found_without_a_user(own_server: RedisServer, interval: int) -> None:
    story = Story(own_server.url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=interval)
    assert story.served()
    own_server.kill()
    story.open()
    time.sleep(2)
    own_server.start()
    with told_within(SOON):
        eventually(lambda: story.breaker.state is CircuitState.CLOSED, 10)  # nobody calls
    assert story.served()
    reasons = [transition.reason for transition in story.transitions]
    assert reasons == ["consecutive-failures", "redis-answered", "probes-succeeded"]
    assert all(failure.error.operation == "PROBE" for failure in story.failures[5:])


@pytest.mark.timing
def test_hung_server_is_found_when_it_goes_on(own_server: RedisServer) -> None:
    story = Story(own_server.url, REDIS_GUARD_TIMEOUT=0.2)
    assert story.served()
    own_server.pause()
    story.open()
    own_server.resume()
    with told_within(SOON):
        eventually(story.served, 10)


@pytest.mark.timing
def test_dead_server_sees_about_one_connection_attempt_a_second(own_server: RedisServer) -> None:
    story = Story(own_server.url, REDIS_GUARD_OPEN_SECONDS=2)
    own_server.kill()
    story.open()
    story.checks.clear()
    refused = 0
    end = time.monotonic() + 4
    while time.monotonic() < end:
        refused += not story.served()
        time.sleep(0.005)
    assert 3 <= len(story.checks) <= 5
    assert refused > 300
    # The open time is over long since, but no user's request had to find out.
    assert [t.current for t in story.transitions] == [CircuitState.OPEN]
    assert {f.error.operation for f in story.failures[5:]} == {"PROBE"}


@pytest.mark.timing
def test_without_recovery_checks_users_find_out_after_the_open_time(
    own_server: RedisServer,
) -> None:
    story = Story(own_server.url, REDIS_GUARD_RECOVERY_INTERVAL=0, REDIS_GUARD_OPEN_SECONDS=2)
    own_server.kill()
    story.open()
    own_server.start()
    time.sleep(1.5)
    assert not story.served()
    eventually(story.served, 3)
    assert [t.reason for t in story.transitions][1] == "open-time-over"
    assert not story.runtime.monitor.running


@pytest.mark.timing
def test_server_that_fails_users_after_each_recovery_is_given_longer_pauses(
    own_server: RedisServer,
) -> None:
    # It answers the check and fails everybody else.
    longest = 1.6
    expected = [0.2, 0.4, 0.8, longest, longest]
    opened: list[float] = []

    def note(transition: Transition) -> None:
        if transition.current is CircuitState.OPEN:
            opened.append(time.monotonic())

    with Proxy(own_server.port) as proxy:
        proxy.cut_on(b"INCRBY")
        story = Story(
            proxy.url, REDIS_GUARD_RECOVERY_INTERVAL=0.2, REDIS_GUARD_OPEN_SECONDS=longest
        )
        story.runtime.bus.subscribe(Transition, note)
        end = time.monotonic() + 20
        while len(opened) <= len(expected) and time.monotonic() < end:
            with pytest.raises(RedisUnavailable):
                story.client.incr("key")
            time.sleep(0.01)
    pauses = [after - before for before, after in pairwise(opened)]
    for least, pause in zip(expected, pauses, strict=True):
        # Less than twice the longest, however busy the machine: that would be the next one.
        assert least * 0.9 <= pause <= least * 1.1 + 1.0, pauses


def test_server_that_answers_now_and_then_is_not_taken_for_a_recovered_one(
    own_server: RedisServer,
) -> None:
    with Proxy(own_server.port) as proxy:
        story = Story(proxy.url, REDIS_GUARD_RECOVERY_INTERVAL=0.05)
        assert story.served()
        proxy.cut_each(1, 1)
        story.open()
        proxy.cut_each(31, 34)  # in the middle of a reply; two writes would pass
        eventually(lambda: len(story.checks) > 15)
        assert CircuitState.CLOSED not in [t.current for t in story.transitions]
        proxy.resume()
        eventually(story.served)


def test_server_far_away_is_asked_once_as_more_would_not_fit(own_server: RedisServer) -> None:
    with Proxy(own_server.port) as proxy:
        proxy.delay(0.15)  # either way: two writes take longer than the timeout
        story = Story(proxy.url, REDIS_GUARD_RECOVERY_INTERVAL=0.05)
        assert story.served()
        proxy.cut_each(1, 1)
        story.open()
        proxy.cut_each(10**9, 10**9)
        eventually(story.served)


def test_latency_is_that_of_one_answer_also_where_several_were_asked_for(
    own_server: RedisServer,
) -> None:
    with Proxy(own_server.port) as proxy:
        proxy.delay(0.015)  # either way: four writes fit into the time of a check
        story = Story(proxy.url, REDIS_GUARD_RECOVERY_INTERVAL=0.05)
        assert story.served()
        proxy.cut_each(1, 1)
        story.open()
        story.checks.clear()
        proxy.cut_each(10**9, 10**9)
        eventually(story.served)
    latencies = [check.latency_ms for check in story.checks if check.latency_ms is not None]
    assert 30 <= min(latencies) < 90, latencies


def test_user_without_the_right_to_write_is_not_told_a_recovery_that_only_a_ping_saw() -> None:
    acl = ["user app on nopass ~data:* +@all"]
    with RedisServer(acl=acl) as server:
        url = f"redis://app:x@127.0.0.1:{server.port}"
        story = Story(url, REDIS_GUARD_RECOVERY_INTERVAL=0.1, REDIS_GUARD_OPEN_SECONDS=2)
        assert story.client.set("data:1", "1")
        with server.client() as helper:
            helper.replicaof("127.0.0.1", 1)  # read-only from now on
        for _ in range(5):
            with pytest.raises(RedisUnavailable, match="read-only"):
                story.client.set("data:1", "2")
        time.sleep(1.5)
        assert [t.current for t in story.transitions] == [CircuitState.OPEN]
        with server.client() as helper:
            helper.replicaof("NO", "ONE")
        # What proves the recovery is a user's write, after the open time.

        def written() -> bool:
            try:
                return bool(story.client.set("data:1", "3"))
            except RedisUnavailable:
                return False

        eventually(written, 5)
        eventually(lambda: written() and story.breaker.state is CircuitState.CLOSED, 5)


def test_right_to_write_that_is_granted_later_is_used(caplog: pytest.LogCaptureFixture) -> None:
    acl = ["user app on nopass ~data:* +@all"]
    with RedisServer(acl=acl) as server:
        story = Story(f"redis://app:x@127.0.0.1:{server.port}")
        monitor = story.runtime.monitor
        assert monitor.check().healthy
        assert monitor.check().healthy
        assert caplog.text.count("may not write") == 1
        with server.client() as helper:
            helper.acl_setuser("app", keys=["guard:*"])
            assert not helper.exists("guard:probe")
            for circuit in monitor._circuits():
                circuit.write_again_at -= 60  # a minute later
            assert monitor.check().healthy
            assert helper.exists("guard:probe")


@pytest.mark.parametrize("interval", [0.05, 0])
def test_apps_that_are_gone_leave_neither_threads_nor_connections(
    own_server: RedisServer, interval: float
) -> None:
    threads, apps = threading.active_count(), []
    with own_server.client() as helper:
        connections = len(helper.client_list())
        for _ in range(30):
            app = make_app(own_server.url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=interval)
            with app.test_request_context():
                runtime.of(app).client.ping()
            if interval:
                eventually(lambda app=app: runtime.of(app).monitor.running)  # type: ignore[misc]
            apps.append(weakref.ref(app))
            del app

        def left() -> list[Any]:
            gc.collect()  # a thread that ends just now has kept its app until then
            return [ref for ref in apps if ref() is not None]

        eventually(lambda: not left(), 10, "all apps are gone")
        eventually(lambda: threading.active_count() <= threads + 1)
        eventually(lambda: len(helper.client_list()) <= connections + 1)


@pytest.fixture
def proxy(own_server: RedisServer) -> Iterator[Proxy]:
    """In front of a server, and deaf for ``GET``."""
    with Proxy(own_server.port) as proxy:
        proxy.cut_on(b"GET")
        yield proxy


def test_process_ends_at_once_although_its_recovery_check_hangs(
    own_server: RedisServer, proxy: Proxy
) -> None:
    code = f"""
    import time
    from flask import Flask
    from flask_redis_guard import RedisGuard, RedisUnavailable, runtime

    app = Flask("exit")
    app.config.update(
        REDIS_URL={proxy.url!r}, REDIS_GUARD_TIMEOUT=60, REDIS_GUARD_FAILURE_THRESHOLD=1,
        REDIS_GUARD_RECOVERY_INTERVAL=0.05,
    )
    guard = RedisGuard(app)
    try:
        guard.client_for(app).get("key")
    except RedisUnavailable:
        pass
    time.sleep(0.5)
    assert runtime.of(app).monitor.running
    print("ends", flush=True)
    """
    own_server.pause()
    try:
        begun = time.monotonic()
        assert run_python(code, timeout=20) == "ends\n"
        assert time.monotonic() - begun < 10
    finally:
        own_server.resume()


def test_child_that_is_forked_in_an_outage_probes_by_itself(proxy: Proxy) -> None:
    code = f"""
    import os, sys, time
    from flask import Flask
    from flask_redis_guard import RedisGuard, RedisUnavailable, runtime

    app = Flask("fork")
    app.config.update(
        REDIS_URL={proxy.url!r}, REDIS_GUARD_FAILURE_THRESHOLD=1,
        REDIS_GUARD_RECOVERY_INTERVAL=0.05, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0,
    )
    guard = RedisGuard(app)
    part = runtime.of(app)
    try:
        guard.client_for(app).get("key")
    except RedisUnavailable:
        pass
    child = os.fork()
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert not part.monitor.running
    try:
        guard.client_for(app).get("key")
    except RedisUnavailable:
        pass
    time.sleep(0.5)
    print(part.breaker.state, flush=True)
    """
    assert run_python(code, timeout=20) == "closed\n"


GUNICORN_APP = """
    import os
    from flask import Flask
    from flask_redis_guard import RedisGuard, rate_limited

    app = Flask(__name__)
    RedisGuard(app)

    @app.get("/")
    @rate_limited("1000000/minute")
    def index():
        return str(os.getpid())
"""


@pytest.mark.timing
@pytest.mark.parametrize("worker", ["sync", "gthread", "gevent"])
def test_each_worker_of_each_kind_serves_soon(own_server: RedisServer, worker: str) -> None:
    threads = 4 if worker == "gthread" else None
    with GunicornApp(
        GUNICORN_APP,
        worker_class=worker,
        workers=2,
        threads=threads,
        env={"REDIS_URL": own_server.url},
    ) as app:
        workers: set[str] = set()

        def both_answer() -> bool:
            workers.add(app.get().text)
            return len(workers) == 2

        eventually(both_answer, 10)
        own_server.kill()
        end = time.monotonic() + 2  # every worker has met it, and its breaker is open
        while time.monotonic() < end:
            assert app.get().status_code == 503
        own_server.start()
        time.sleep(SOON)
        answers = [app.get() for _ in range(60)]
        assert {answer.status_code for answer in answers} == {200}, app.log()
        assert {answer.text for answer in answers} == workers
        log = app.log()
    # One of them finds out, and perhaps the other one by itself at the same time.
    assert log.count("Circuit breaker opening after") >= 1
    assert log.lower().count("circuit breaker opening") == 2
    assert log.lower().count("circuit breaker closing") == 2
    assert "Traceback" not in log
