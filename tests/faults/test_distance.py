"""A server that is far away is served from at default settings, from the first request on."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import pytest

from tests.support.distance import can_be_apart, run_apart

pytestmark = [
    pytest.mark.timing,
    pytest.mark.skipif(not can_be_apart(), reason="needs a network namespace with a tunnel"),
]

MANY = """
    import json, sys, threading
    from collections import Counter
    from tests.support import GunicornApp, RedisServer, TLSIdentity
    from tests.support.distance import FAR, Distance

    APP = '''
    from flask import Flask
    from flask_redis_guard import RedisGuard
    app = Flask(__name__)
    guard = RedisGuard(app)
    @app.get("/")
    def index():
        return "up"
    @app.get("/count")
    def count():
        return str(guard.client.incr("n"))
    '''
    statuses = Counter()

    def ask(app, times):
        for _ in range(times):
            statuses[app.get("/count").status_code] += 1

    Distance({seconds})
    options = {{"bind": "0.0.0.0", "protected-mode": "no"}}
    with RedisServer(options=options, password={password!r}) as server:
        url = server.url.replace("127.0.0.1", FAR)
        env = {{"REDIS_URL": url, "ENVIRONMENT": "production"}}
        with GunicornApp(APP, worker_class="{worker}", threads={threads}, env=env) as app:
            if {first}:
                app.get("/count")
            callers = [threading.Thread(target=ask, args=(app, 15)) for _ in range(8)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
    print(json.dumps(statuses))
"""


def _served(seconds: float, worker: str, password: str | None = None, first: bool = False) -> Any:
    code = textwrap.dedent(MANY).format(
        seconds=seconds,
        worker=worker,
        threads=8 if worker == "gthread" else None,
        password=password,
        first=first,
    )
    return json.loads(run_apart(code))


@pytest.mark.parametrize("worker", ["gevent", "gthread"])
def test_every_request_is_served(worker: str) -> None:
    assert _served(0.2, worker) == {"200": 120}


def test_a_login_costs_no_request_but_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    # A login that the server has accepted once is sent together with the command after it.
    assert _served(0.2, "gevent", password="secret", first=True) == {"200": 120}


CLUSTER = """
    import json, sys, threading, time
    from collections import Counter
    from tests.support import ClusterSetup, GunicornApp
    from tests.support.distance import FAR, Distance

    APP = '''
    from flask import Flask
    from flask_redis_guard import RedisGuard
    app = Flask(__name__)
    guard = RedisGuard(app)
    if {start}:
        guard.start(app)
    @app.get("/")
    def index():
        return "up"
    @app.get("/<name>")
    def count(name):
        return str(guard.client.incr(name))
    '''
    def ask(app, number, told, times):
        for turn in range(times):
            told.append(app.get(f"/{{number}}-{{turn % 20}}").status_code)

    def together(app, callers, times):
        told = []
        threads = [threading.Thread(target=ask, args=(app, n, told, times)) for n in range(callers)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        return Counter(told)

    def measure(url):
        env = {{"REDIS_URL": url, "ENVIRONMENT": "production"}}
        with GunicornApp(APP, worker_class="{worker}", threads={threads}, env=env) as app:
            time.sleep({start})
            first, more = together(app, 8, 2), together(app, 5, 10)
            print(json.dumps([first, more, together(app, 5, 15)]))

    Distance({seconds})
    options = {{"bind": "0.0.0.0", "protected-mode": "no", "cluster-announce-ip": FAR}}
    with ClusterSetup(options=options, node_timeout_ms=5000) as setup:
        measure(setup.url.replace("127.0.0.1", FAR))
"""


@pytest.mark.parametrize(("start", "worker"), [(0, "gevent"), (2, "gthread")])
def test_a_cluster_is_served_from(start: int, worker: str) -> None:
    code = textwrap.dedent(CLUSTER).format(
        seconds=0.2, start=start, worker=worker, threads=8 if worker == "gthread" else None
    )
    first, more, rest = json.loads(run_apart(code))
    if start:
        assert first == {"200": 16}
    # A new connection may use up its caller's time, until each caller has one to each node.
    assert set(more) <= {"200", "503"}, (first, more)
    assert rest["200"] >= 70, (first, more, rest)


PROTECTED = """
    import contextlib, json, threading, time
    from collections import Counter
    from tests.support import GunicornApp, RedisServer
    from tests.support.distance import FAR, Distance

    APP = '''
    from flask import Flask
    from flask_redis_guard import GuardedSessionInterface, RedisGuard, rate_limited, session
    from flask_redis_guard import request_refused
    app = Flask(__name__)
    app.config["SECRET_KEY"] = "x" * 32
    guard = RedisGuard(app)
    @request_refused.connect_via(app)
    def tell(_, error, **more):
        app.logger.error("%s, since %r", error, error.__cause__)
    app.session_interface = GuardedSessionInterface(guard)
    if {start}:
        guard.start(app)
    @app.get("/")
    def index():
        return "up"
    @app.get("/count")
    @rate_limited("100000/minute; 1000000/hour", key=lambda: "all")
    def count():
        session["n"] = session.get("n", 0) + 1
        return str(guard.client.incr("n"))
    '''
    EVERYWHERE = {{"bind": "0.0.0.0", "protected-mode": "no"}}
    first, rest = [], []

    def ask(app, told, times):
        cookie = ""
        for _ in range(times):
            reply = app.get("/count", headers={{"Cookie": cookie}})
            told.append(reply.status_code)
            for name, value in reply.cookies.items():
                cookie = f"{{name}}={{value}}"

    def together(app, told, times):
        callers = [threading.Thread(target=ask, args=(app, told, times)) for _ in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()

    def measure(url):
        env = {{"REDIS_URL": url, "ENVIRONMENT": "production"}}
        with GunicornApp(APP, worker_class="{worker}", threads={threads}, env=env) as app:
            time.sleep({start})
            together(app, first, 3)
            together(app, rest, 5)
            print(json.dumps([Counter(first), Counter(rest), app.log()]))

    Distance({seconds})
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(RedisServer(options=EVERYWHERE))
        if {sentinel}:
            lines = [f"monitor m {{FAR}} {{server.port}} 1", "down-after-milliseconds m 5000"]
            options = {{**EVERYWHERE, "sentinel": lines}}
            sentinels = [
                stack.enter_context(RedisServer(sentinel=True, options=options)) for _ in range(3)
            ]
            hosts = ",".join(f"{{FAR}}:{{each.port}}" for each in sentinels)
            measure(f"redis+sentinel://{{hosts}}/m")
        else:
            measure(server.url.replace("127.0.0.1", FAR))
"""


@pytest.mark.parametrize(
    ("sentinel", "start", "worker"),
    [(False, 0, "gevent"), (True, 0, "gthread"), (True, 2, "gevent")],
)
def test_limits_and_sessions_are_served_from(sentinel: bool, start: int, worker: str) -> None:
    code = textwrap.dedent(PROTECTED).format(
        seconds=0.2,
        sentinel=sentinel,
        start=start,
        worker=worker,
        threads=8 if worker == "gthread" else None,
    )
    first, rest, log = json.loads(run_apart(code))
    assert rest == {"200": 40}, (first, rest, log)
    if start:
        assert first == {"200": 24}, log
    # One request of each caller at most: with sentinels there is nobody to ask at first.
    assert first["200"] >= 16, (first, log)
