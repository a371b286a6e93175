"""The guard under gevent, patched before it was imported, after, and after an app was made."""

from __future__ import annotations

import textwrap

import pytest

from tests.support import run_python

PATCH = "from gevent import monkey; monkey.patch_all()\n"
IMPORTS = "from flask import Flask\nfrom flask_redis_guard import *\n"
APP = textwrap.dedent(
    """
    app = Flask("app")
    guard = RedisGuard()
    def configure(url, **settings):
        app.config.update(REDIS_URL=url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0, **settings)
        guard.init_app(app)
        return guard.client_for(app)
    """
)
ORDERS = {
    "before import": PATCH + IMPORTS + APP,
    "after import": IMPORTS + APP + PATCH,
}


def run(order: str, body: str) -> list[str]:
    warnings = "import warnings; warnings.simplefilter('ignore')\n"  # gevent's, of patching late
    tail = "import gevent, time\nfrom tests.support import *\n"
    return run_python(warnings + ORDERS[order] + tail + textwrap.dedent(body)).split()


@pytest.mark.parametrize("order", ORDERS)
def test_calls_wait_side_by_side_and_within_the_deadline(order: str) -> None:
    told = run(
        order,
        """
        with SilentServer() as silent:
            client = configure(
                silent.url, REDIS_GUARD_TIMEOUT=0.4, REDIS_GUARD_FAILURE_THRESHOLD=99
            )
            ticks = 0
            def tick():
                global ticks
                while True:
                    gevent.sleep(0.01)
                    ticks += 1
            def ask():
                try:
                    client.get("key")
                except RedisTimeout:
                    return True
            ticking = gevent.spawn(tick)
            started = time.monotonic()
            greenlets = [gevent.spawn(ask) for _ in range(30)]
            gevent.joinall(greenlets)
            ticking.kill()
            print(sum(g.value for g in greenlets), time.monotonic() - started < 1.5, ticks > 10)
        """,
    )
    assert told == ["30", "True", "True"]


@pytest.mark.parametrize("order", ORDERS)
def test_greenlet_killed_inside_a_call_leaves_breaker_and_connection_right(order: str) -> None:
    told = run(
        order,
        """
        with RedisServer() as server, Proxy(server.port) as proxy:
            server.client().mset({"a": "of a", "b": "of b"})
            client = configure(proxy.url, REDIS_GUARD_TIMEOUT=5, REDIS_GUARD_MAX_CONNECTIONS=1)
            client.get("a")
            for how in (lambda g: g.kill(), lambda g: g.kill(gevent.Timeout(1))):
                proxy.hang()
                victim = gevent.spawn(client.get, "a")
                gevent.sleep(0.1)
                how(victim)
                proxy.resume()
                with app.app_context():
                    print(guard.breaker.state, guard.breaker.failure_count)
                print(*client.get("b").decode().split())
        """,
    )
    assert told == ["closed", "0", "of", "b"] * 2


@pytest.mark.parametrize("order", ORDERS)
def test_killed_probe_gives_its_permit_back_at_once(order: str) -> None:
    told = run(
        order,
        """
        with RedisServer() as server:
            client = configure(
                server.url, REDIS_GUARD_TIMEOUT=5, REDIS_GUARD_FAILURE_THRESHOLD=1,
                REDIS_GUARD_SUCCESS_THRESHOLD=1, REDIS_GUARD_OPEN_SECONDS=0.2,
                REDIS_GUARD_RECOVERY_INTERVAL=0,
            )
            server.kill()
            try:
                client.get("a")
            except RedisUnavailable:
                pass
            server.start()
            server.pause()
            with app.app_context():
                while guard.breaker.state is CircuitState.OPEN:
                    gevent.sleep(0.02)
                probe = gevent.spawn(client.get, "a")
                gevent.sleep(0.1)
                try:
                    client.get("a")
                except CircuitOpen:
                    print("one at a time")
                probe.kill()
                print(guard.breaker.state)
                server.resume()
                print(client.get("a"), guard.breaker.state)
        """,
    )
    assert told == ["one", "at", "a", "time", "half-open", "None", "closed"]


def test_app_that_worked_before_it_was_patched_works_after() -> None:
    told = run_python(
        IMPORTS
        + textwrap.dedent(
            """
            import threading, warnings
            warnings.simplefilter("ignore")
            from tests.support import RedisServer
            with RedisServer() as server:
                app = Flask("app")
                app.config.update(REDIS_URL=server.url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0)
                app.config.update(REDIS_GUARD_TIMEOUT=5)  # a hundred connect at once
                guard = RedisGuard(app)
                client = guard.client_for(app)
                client.set("a", "1")
                with app.app_context():
                    guard.breaker.force_open()
                    guard.breaker.reset()
                from gevent import monkey; monkey.patch_all()
                import gevent
                greenlets = [gevent.spawn(client.incr, "a") for _ in range(100)]
                gevent.joinall(greenlets, timeout=10)
                print(client.get("a").decode())
                with app.app_context():
                    guard.breaker.force_open()
                    print(guard.breaker.state)
            """
        )
    )
    assert told.split() == ["101", "forced-open"]


@pytest.mark.parametrize("order", ORDERS)
def test_place_that_a_killed_greenlet_took_or_kept_is_free_soon(order: str) -> None:
    told = run(
        order,
        """
        with RedisServer() as server, Proxy(server.port) as proxy:
            configure(proxy.url, REDIS_GUARD_TIMEOUT=5)
            places = app.extensions["redis_guard"].places
            def held():
                return sum(server.client().zcard(key) for key in server.client().keys("*"))
            def killed_in(call, *args):
                proxy.delay(0.3)  # it reaches Redis, and nobody waits for the answer
                victim = gevent.spawn(call, *args)
                gevent.sleep(0.1)
                victim.kill()
                proxy.resume()
            places.release(places.acquire("subject", 2, 60, "scope"))  # connects
            killed_in(places.acquire, "subject", 2, 60, "scope")
            eventually(lambda: held() == 1, 5, "it was taken for nobody")
            eventually(lambda: held() == 0, 5, "it is given back")
            lease = places.acquire("subject", 2, 60, "scope")
            proxy.hang()
            victim = gevent.spawn(places.release, lease)
            gevent.sleep(0.1)
            victim.kill()
            proxy.cut()  # it never reaches Redis
            proxy.resume()
            eventually(lambda: held() == 0, 5, "it is given back")
            print("free")
        """,
    )
    assert told == ["free"]
