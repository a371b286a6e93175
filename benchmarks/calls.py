"""Function calls of a request and of an operation, by ``cProfile``: exact, whatever the load.

``python -m benchmarks.calls``
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

import redis
from flask import Flask

from benchmarks.harness import Table, function_calls, publish, server
from benchmarks.peers import APPS, Quota, guarded_app, make_app
from flask_redis_guard import CircuitOpen, Rate

ONE: list[Quota] = [(1_000_000, 60)]
THREE: list[Quota] = [(1_000_000, 60), (10_000_000, 3600), (100_000_000, 86400)]
SPENT: list[Quota] = [(1, 3600)]


def requester(app: Flask, status: int) -> Callable[[], None]:
    """Return what sends one request to an app in process and insists on its status."""

    def start(line: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
        assert int(line[:3]) == status, line
        return lambda data: None

    def call() -> None:
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/",
            "SCRIPT_NAME": "",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "QUERY_STRING": "",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": sys.stderr,
            "REMOTE_ADDR": "192.0.2.1",
            "HTTP_X_CLIENT": "c1",
        }
        body = app.wsgi_app(environ, start)
        for _ in body:
            pass
        close = getattr(body, "close", None)
        if close is not None:
            close()

    return call


def of_requests(url: str) -> Table:
    """Count the calls of a request beyond those of an app without limits."""
    base = function_calls(requester(make_app("no limiter", url, ONE), 200))
    rows: list[list[Any]] = []
    databases = iter(range(1, 100))
    for name in APPS:
        if name == "no limiter":
            continue
        row: list[Any] = [name]
        for quotas, status in ((ONE, 200), (THREE, 200), (SPENT, 429)):
            try:
                app = make_app(name, url.rpartition("/")[0] + f"/{next(databases)}", quotas)
            except ImportError:
                row.append("not installed")
                continue
            if status == 429:
                requester(app, 200)()
            row.append(round(function_calls(requester(app, status)) - base))
        rows.append(row)
    head = ["app", "admitted, 1 limit", "admitted, 3 limits", "refused (429)"]
    return Table(f"Function calls a request beyond the unlimited app's {base:.0f}", head, rows)


def of_operations(url: str) -> Table:
    """Count the calls of an operation beyond those of a plain redis-py ``GET``."""
    app, guard = guarded_app(url, REDIS_GUARD_KEY_PREFIX="calls:")
    plain, client = redis.Redis.from_url(url), guard.client_for(app)
    with app.app_context():
        limiter, breaker = guard.limiter, guard.breaker
    rate = Rate(1_000_000, 60)
    three = (rate, Rate(2_000_000, 3600), Rate(3_000_000, 86400))
    get = function_calls(lambda: plain.get("k"))

    def refused() -> None:
        try:
            client.get("k")
        except CircuitOpen:
            return
        raise AssertionError("admitted by an open breaker")

    counted: dict[str, float] = {
        "decision, 1 rate": function_calls(lambda: limiter.hit(rate, "k")) - get,
        "decision, 3 rates": function_calls(lambda: limiter.hit(three, "k")) - get,
        "guarded GET": function_calls(lambda: client.get("k")) - get,
    }
    breaker.force_open()
    counted["refusal by an open breaker"] = function_calls(refused) - get
    rows: list[list[Any]] = [
        [name, f"{calls:+.0f}", round(calls + get)] for name, calls in counted.items()
    ]
    title = f"Function calls beyond a plain redis-py GET's {get:.0f}"
    return Table(title, ["operation", "beyond", "in all"], rows)


def measure() -> list[Table]:
    """Return both tables."""
    with server(options={"databases": 100}) as running:
        return [of_requests(running.url), of_operations(running.url)]


if __name__ == "__main__":
    publish(measure())
