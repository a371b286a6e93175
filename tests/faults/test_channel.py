"""Shared round trips: no wrong reply, no lost outcome, nothing sent twice, nobody harmed by others.

Callers in a process of their own, threads or greenlets, ask a script for an echo of a number that
is theirs alone; the script also counts how often that number arrived. Meanwhile connections are
cut, hang, are garbled, and callers are killed.
"""

from __future__ import annotations

import json
import random
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from flask_redis_guard.client.channel import MEANWHILE
from tests.support import ClusterSetup, Proxy, RedisServer, SentinelSetup, run_python
from tests.support.proxy import TLSIdentity

CALLERS = """
    import os, sys
    if os.environ["MODEL"] == "gevent":
        from gevent import monkey; monkey.patch_all()
    import contextlib, itertools, json, random, threading, time
    from flask import Flask
    from flask_redis_guard import RedisGuard, RedisUnavailable
    from flask_redis_guard.client.script import Script
    from flask_redis_guard.events import CallFinished

    app = Flask("callers")
    app.config.update(
        REDIS_URL=os.environ["TEST_URL"],
        SECRET_KEY="x",
        REDIS_GUARD_TIMEOUT=float(os.environ["TIMEOUT"]),
        REDIS_GUARD_FAILURE_THRESHOLD=100_000,
        REDIS_GUARD_MINIMUM_CALLS=100_000,
        REDIS_GUARD_FAILURE_ALERT_COUNT=100_000,
        REDIS_GUARD_HEALTH_CHECK_INTERVAL=0,
    )
    guard = RedisGuard(app)
    client = guard.client_for(app)
    script = Script("echo", "redis.call('INCR', KEYS[1]) return ARGV[1]")
    numbers = itertools.count()
    happened, reasons, waits = [], [], [0.0]  # appending is atomic, adding is not
    served = []
    until = time.monotonic() + float(os.environ["SECONDS"])

    def goes_on():
        now = time.monotonic()
        return now < until or len(served) < 200 and now < until + 10  # on a busy machine

    def note(call):
        happened.append("finished")
        happened.append(call.outcome.value)

    client.gate.bus.subscribe(CallFinished, note)

    def ask():
        own = b"%d" % next(numbers)
        happened.append("asked")
        began = time.monotonic()
        try:
            reply = script.run(client, (b"%b:%b" % (os.environ["TAG"].encode(), own),), (own,))
        except RedisUnavailable as error:
            happened.append("refused")
            reasons.append(error.reason)
        else:
            happened.append("answered" if reply == own else "wrong")
            served.append(own)
        waits.append(time.monotonic() - began)

    def work():
        while goes_on():
            ask()

    if os.environ.get("KILLS"):
        import gevent

        def work():
            while goes_on():
                one = gevent.spawn(ask)
                with gevent.Timeout(random.choice((0.001, 0.003, 5)), False):
                    one.join()
                if not one.dead:
                    one.kill()
                    happened.append("killed")

    threads = [threading.Thread(target=work) for _ in range(int(os.environ["CALLERS"]))]
    for thread in threads:
        thread.start()

    if os.environ.get("SIGNALS"):
        import signal

        class Interrupted(BaseException):
            pass

        def interrupt(*_):
            raise Interrupted

        signal.signal(signal.SIGALRM, interrupt)
        while time.monotonic() < until:
            with contextlib.suppress(Interrupted):
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00002, 0.003))
                    script.run(client, (b"interrupted",), (b"x",))
                except Interrupted:
                    happened.append("killed")
                    raise
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)

    for thread in threads:
        thread.join()
    told = "asked answered refused killed wrong finished failure".split()
    counts = {name: happened.count(name) for name in told}
    waits.sort()
    counts.update(longest=waits[-1], median=waits[len(waits) // 2])
    print(json.dumps({**counts, "reasons": sorted(set(reasons))}))
"""

MODELS = ("threads", "gevent")
GARBAGE = [b"?what\r\n", b"$abc\r\n", b":x\r\n", b"*x\r\n", b"*1\r\n" * 50, b"+\xff\r\n"]


def call(
    url: str,
    model: str,
    disturb: Callable[[], object] = lambda: None,
    *,
    seconds: float = 1.5,
    timeout: float = 0.3,
    kills: bool = False,
    signals: bool = False,
) -> dict[str, Any]:
    """Let callers call while something disturbs them again and again; return what they counted."""
    tag = secrets.token_hex(4)
    env = {
        "TAG": tag,
        "TEST_URL": url,
        "MODEL": model,
        "SECONDS": str(seconds),
        "TIMEOUT": str(timeout),
        # Of so many greenlets, a second batch is sent while the first is on its way.
        "CALLERS": str(2 * MEANWHILE if model == "gevent" else 24),
        "KILLS": "1" if kills else "",
        "SIGNALS": "1" if signals else "",
    }
    stop = threading.Event()

    def go_on() -> None:
        while not stop.wait(random.uniform(0.02, 0.1)):
            disturb()

    disturber = threading.Thread(target=go_on)
    disturber.start()
    try:
        counts: dict[str, Any] = json.loads(run_python(CALLERS, timeout=60, env=env))
    finally:
        stop.set()
        disturber.join()
    return {**counts, "tag": tag}


def nothing_was_sent_twice(counts: dict[str, Any], server: RedisServer) -> bool:
    """Tell from what arrived at the server."""
    with server.client() as client:
        keys = list(client.scan_iter(match=f"{counts['tag']}:*", count=1000))
        arrived: set[str] = set()
        for at in range(0, len(keys), 1000):
            arrived.update(client.mget(keys[at : at + 1000]))
    return arrived == {"1"}


def arrived_once(counts: dict[str, Any], setup: RedisServer | SentinelSetup | ClusterSetup) -> bool:
    """Tell the same of any set-up."""
    if not isinstance(setup, ClusterSetup):
        server = setup if isinstance(setup, RedisServer) else setup.primary()
        return nothing_was_sent_twice(counts, server)
    with setup.client() as client:
        keys = client.scan_iter(match=f"{counts['tag']}:*", count=1000)
        return {client.get(key) for key in keys} == {"1"}


def check(counts: dict[str, Any], server: RedisServer) -> None:
    """Insist on what holds whatever happens."""
    assert counts["wrong"] == 0, counts
    assert counts["answered"] + counts["refused"] + counts["killed"] >= counts["asked"], counts
    assert counts["finished"] == counts["asked"], counts
    assert counts["answered"] > 100, counts
    assert nothing_was_sent_twice(counts, server), counts


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    with Proxy(redis_server.port) as running:
        yield running


@pytest.fixture(params=["plain", "TLS"])
def either_proxy(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[Proxy]:
    with tempfile.TemporaryDirectory() as directory:
        tls = TLSIdentity(directory) if request.param == "TLS" else None
        with Proxy(redis_server.port, tls=tls) as running:
            yield running


@pytest.mark.parametrize("model", MODELS)
def test_all_are_answered_where_nothing_is_wrong(redis_server: RedisServer, model: str) -> None:
    counts = call(redis_server.url, model, seconds=1, timeout=2)
    check(counts, redis_server)
    assert counts["answered"] == counts["asked"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("fault", ["cut_after", "hang_after"])
def test_broken_in_the_middle_of_replies(
    redis_server: RedisServer, either_proxy: Proxy, model: str, fault: str
) -> None:
    def disturb() -> None:
        getattr(either_proxy, fault)(random.randrange(1, 2000))
        time.sleep(random.uniform(0.2, 0.6))  # for most longer than callers wait
        either_proxy.resume()

    counts = call(either_proxy.url, model, disturb, seconds=2.5)
    check(counts, redis_server)
    assert counts["refused"] > 0, counts
    assert counts["longest"] < 1.5, counts


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbled(redis_server: RedisServer, proxy: Proxy, model: str, garbage: bytes) -> None:
    def garble() -> None:
        proxy.garble(garbage)
        time.sleep(0.5)  # time to connect anew

    counts = call(proxy.url, model, garble, seconds=1.4)
    assert counts["refused"] > 0 or garbage.startswith(b"+"), counts
    assert counts["finished"] == counts["asked"], counts
    assert nothing_was_sent_twice(counts, redis_server), counts
    if not garbage.startswith(b"+"):  # which is a well-formed reply, to somebody
        assert counts["wrong"] == 0, counts


@pytest.mark.parametrize("model", MODELS)
def test_one_lost_connection_is_one_failure(
    redis_server: RedisServer, proxy: Proxy, model: str
) -> None:
    counts = call(proxy.url, model, proxy.cut, timeout=2)
    check(counts, redis_server)
    assert 0 < counts["failure"] <= counts["refused"], counts


@pytest.mark.timing
@pytest.mark.parametrize("model", MODELS)
def test_nobody_waits_for_the_round_trip_of_another_over_a_far_network(
    redis_server: RedisServer, proxy: Proxy, model: str
) -> None:
    proxy.delay(0.2)  # either way
    counts = call(proxy.url, model, seconds=2.5, timeout=2)
    assert counts["refused"] == counts["wrong"] == 0, counts
    assert 0.4 <= counts["median"] < 0.55, counts


@pytest.mark.timing
@pytest.mark.parametrize("model", MODELS)
def test_a_network_that_becomes_slow_costs_nobody_a_request(
    redis_server: RedisServer, proxy: Proxy, model: str
) -> None:
    def toggle() -> None:
        time.sleep(0.4)
        proxy.delay(0.15)  # either way
        time.sleep(1.0)
        proxy.delay(0.0)

    counts = call(proxy.url, model, toggle, seconds=3, timeout=0.5)
    assert counts["refused"] == counts["wrong"] == 0, counts
    assert counts["longest"] > 0.3, counts


@pytest.mark.parametrize("topology", ["redis_server", "sentinel_setup", "cluster_setup"])
def test_killed_callers_harm_nobody(topology: str, request: pytest.FixtureRequest) -> None:
    setup: RedisServer | SentinelSetup | ClusterSetup = request.getfixturevalue(topology)
    counts = call(setup.url, "gevent", kills=True, timeout=2)
    assert counts["wrong"] == counts["refused"] == 0, counts
    assert counts["finished"] == counts["asked"], counts
    assert counts["answered"] > 100, counts
    assert counts["killed"] > 50, counts
    assert arrived_once(counts, setup), counts


def test_exceptions_of_signal_handlers_harm_nobody_else(redis_server: RedisServer) -> None:
    counts = call(redis_server.url, "threads", signals=True, timeout=2)
    assert counts["killed"] > 50, counts
    assert counts["refused"] == counts["wrong"] == 0, counts
    assert counts["answered"] == counts["asked"], counts
    assert nothing_was_sent_twice(counts, redis_server), counts


@pytest.mark.parametrize("model", MODELS)
def test_scripts_flushed_in_the_middle(redis_server: RedisServer, model: str) -> None:
    with redis_server.client() as client:
        counts = call(redis_server.url, model, client.script_flush, timeout=2)
    check(counts, redis_server)
    assert counts["refused"] == 0, counts


@pytest.mark.parametrize("model", MODELS)
def test_all_of_a_batch_is_encrypted(redis_server: RedisServer, model: str) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        Proxy(redis_server.port, tls=TLSIdentity(directory)) as proxy,
    ):
        counts = call(proxy.url, model, timeout=2)
    check(counts, redis_server)
    assert counts["refused"] == 0, counts  # who takes the proxy for a plain server is cut off


@pytest.mark.parametrize("model", MODELS)
def test_over_tls(redis_server: RedisServer, model: str) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        Proxy(redis_server.port, tls=TLSIdentity(directory)) as proxy,
    ):
        counts = call(proxy.url, model, proxy.cut, timeout=1)
    check(counts, redis_server)


@pytest.mark.parametrize("model", MODELS)
def test_a_restart_in_the_middle(redis_server: RedisServer, model: str) -> None:
    def restart() -> None:
        time.sleep(0.7)
        redis_server.restart()

    counts = call(redis_server.url, model, restart, seconds=2.5, timeout=0.3)
    assert counts["wrong"] == 0, counts
    assert counts["refused"] > 0, counts
    assert counts["finished"] == counts["asked"], counts
    assert counts["longest"] < 1.5, counts


@pytest.mark.parametrize("model", MODELS)
def test_credentials_changed_in_the_middle(redis_server: RedisServer, model: str) -> None:
    with redis_server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "caller", "on", ">secret", "~*", "+@all")
        url = redis_server.url.replace("redis://", "redis://caller:secret@")
        allowed = True

        def change() -> None:
            nonlocal allowed
            allowed = not allowed
            sign = "+" if allowed else "-"
            admin.execute_command("ACL", "SETUSER", "caller", f"{sign}evalsha", f"{sign}eval")

        try:
            counts = call(url, model, change, timeout=2)
        finally:
            admin.acl_deluser("caller")
    check(counts, redis_server)
    assert counts["reasons"] == ["rejected"], counts


@pytest.mark.parametrize("model", MODELS)
def test_failover_in_the_middle(model: str) -> None:
    with SentinelSetup() as setup:
        began = threading.Event()

        def fail_over() -> None:
            with redis.Redis(port=setup.primary().port) as primary:
                if not began.is_set() and primary.dbsize() > 100:
                    began.set()
                    setup.primary().kill()

        counts = call(setup.url, model, fail_over, seconds=5, timeout=0.5)
        assert counts["wrong"] == 0, counts
        assert counts["finished"] == counts["asked"], counts
        assert counts["answered"] > 100, counts
        assert began.is_set()
        with redis.Redis(port=setup.primary().port) as primary:
            assert primary.role()[0] == b"master"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("topology", ["sentinel_setup", "cluster_setup"])
def test_where_servers_hang_up(topology: str, model: str, request: pytest.FixtureRequest) -> None:
    setup: SentinelSetup | ClusterSetup = request.getfixturevalue(topology)
    admins = [redis.Redis(port=server.port) for server in setup.servers]

    def hang_up() -> None:
        random.choice(admins).execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    counts = call(setup.url, model, hang_up, seconds=2, timeout=1)
    assert counts["wrong"] == 0, counts
    assert counts["finished"] == counts["asked"], counts
    assert counts["answered"] > 100, counts
    assert counts["longest"] < 3, counts
    assert arrived_once(counts, setup), counts
