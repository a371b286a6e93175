"""At most so many calls at once, whatever becomes of them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Response, stream_with_context

from flask_redis_guard import ConfigurationError, concurrency_limited, rate_limit_exceeded
from tests.integration.limits.conftest import Made
from tests.support import RedisServer, eventually

Make = Callable[..., Made]


class Busy:
    """A view that many can be in at once, until it is told to end."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.inside = 0
        self.most = 0
        self._lock = threading.Lock()

    def __call__(self) -> str:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.end.wait(20)
        with self._lock:
            self.inside -= 1
        return "done"


def limited(made: Made, view: Callable[..., Any], *args: Any, **options: Any) -> Made:
    made.app.add_url_rule("/", "index", concurrency_limited(*args, **options)(view))
    return made


def get(made: Made) -> int:
    return made.app.test_client().get("/").status_code


def named(view: Callable[..., Any]) -> Callable[..., Any]:
    def _view() -> Any:
        return view()

    return _view


def test_no_more_than_the_limit_are_inside_at_once(make_app: Make) -> None:
    busy = Busy()
    made = limited(make_app(), named(busy), 3)
    with ThreadPoolExecutor(12) as pool:
        try:
            calls = [pool.submit(get, made) for _ in range(12)]
            eventually(lambda: sum(call.done() for call in calls) == 9, 20, "nine are refused")
            assert busy.inside == 3
        finally:
            busy.end.set()
        codes = sorted(call.result() for call in calls)
    assert codes == [200] * 3 + [429] * 9
    assert busy.most == 3
    assert get(made) == 200  # all places are free again


def test_a_refusal_says_when_to_come_again_and_is_announced(
    make_app: Make, redis_server: RedisServer
) -> None:
    busy = Busy()
    made = limited(make_app(), named(busy), 1, lease=30)
    heard: list[dict[str, Any]] = []

    def hear(app: Any, **event: Any) -> None:
        heard.append(event)

    with ThreadPoolExecutor(1) as pool, rate_limit_exceeded.connected_to(hear, made.app):
        held = pool.submit(get, made)
        eventually(lambda: busy.inside == 1)
        response = made.client.get("/")
        busy.end.set()
        assert held.result() == 200
    assert response.status_code == 429
    assert response.mimetype == "application/problem+json"
    assert 25 <= int(response.headers["Retry-After"]) <= 30
    assert [(event["endpoint"], event["shadow"]) for event in heard] == [("index", False)]


def test_an_exception_frees_the_place(make_app: Make) -> None:
    made = limited(make_app(), lambda: 1 / 0, 1)
    assert [get(made) for _ in range(3)] == [500] * 3


def _response(parts: Iterator[str]) -> Any:
    return Response(parts)


def _bare(parts: Iterator[str]) -> Any:
    return parts


def _with_status(parts: Iterator[str]) -> Any:
    return parts, 201


def _in_context(parts: Iterator[str]) -> Any:
    return stream_with_context(parts)


@pytest.mark.parametrize("made_of", [_response, _bare, _with_status, _in_context])
@pytest.mark.parametrize("read", [True, False])
def test_a_stream_holds_its_place_until_it_ends_or_is_closed(
    make_app: Make, made_of: Callable[[Iterator[str]], Any], read: bool
) -> None:
    made = limited(make_app(), lambda: made_of(iter(["a", "b"])), 1)
    streamed = made.app.test_client().get("/", buffered=False)
    assert streamed.status_code in (200, 201)
    assert get(made) == 429
    if read:
        assert streamed.get_data(as_text=True) == "ab"
    streamed.close()
    with made.app.test_client().get("/", buffered=False) as again:
        assert again.status_code in (200, 201)


def test_a_stream_that_fails_frees_its_place(make_app: Make) -> None:
    def stream() -> Iterator[str]:
        yield "a"
        raise RuntimeError("in the middle")

    made = limited(make_app(), stream, 1)
    for _ in range(2):
        with made.app.test_client().get("/", buffered=False) as streamed:
            assert streamed.status_code == 200
            with pytest.raises(RuntimeError):
                streamed.get_data()


WORKER = """
import sys, time
from flask import Flask
from flask_redis_guard import RedisGuard, concurrency_limited

app = Flask("tests")
app.config.update(REDIS_URL=sys.argv[1], REDIS_GUARD_HEALTH_CHECK_INTERVAL=0)
app.secret_key = "not so secret"
RedisGuard(app)

def report():
    print("inside", flush=True)
    time.sleep(60)

report.__module__ = "reports"
app.add_url_rule("/", "index", concurrency_limited(1, lease=3)(report))
app.test_client().get("/")
"""


def test_the_place_of_a_killed_worker_is_free_with_its_lease(
    make_app: Make, redis_server: RedisServer
) -> None:
    def report() -> str:
        return "in"

    report.__module__, report.__qualname__ = "reports", "report"
    made = limited(make_app(), report, 1, lease=3)
    command = [sys.executable, "-c", WORKER, redis_server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "inside\n"
        taken = time.monotonic()
        worker.kill()
    refused = made.client.get("/")
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 3
    eventually(lambda: get(made) == 200, 10, "the place is free")
    assert time.monotonic() >= taken + 2.5


def test_keys_and_their_accidents(make_app: Make) -> None:
    def broken() -> Any:
        raise KeyError("no such user")

    for key in (broken, object, "user"):
        made = limited(make_app(), lambda: "in", 1, key=key)
        response = made.client.get("/")
        assert response.status_code == 503
        assert int(response.headers["Retry-After"]) >= 1
    subjects = iter(["a", "b", None, ""])
    busy = Busy()
    made = limited(make_app(), named(busy), 1, key=lambda: next(subjects))
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(get, made) for _ in range(3)]
        eventually(lambda: busy.inside == 3, 10, "three subjects are inside")
        assert get(made) == 429  # "" and None are both the address
        busy.end.set()
        assert [call.result() for call in calls] == [200] * 3


@pytest.mark.parametrize(("on_outage", "code"), [("deny", 503), ("allow", 200)])
def test_without_redis(make_app: Make, own_server: RedisServer, on_outage: str, code: int) -> None:
    made = limited(make_app(REDIS_URL=own_server.url), lambda: "in", 1, on_outage=on_outage)
    own_server.kill()
    response = made.client.get("/")
    assert response.status_code == code
    assert ("Retry-After" in response.headers) == (code == 503)


def test_redis_gone_during_the_call_does_not_spoil_the_answer(
    make_app: Make, own_server: RedisServer
) -> None:
    def view() -> str:
        own_server.kill()
        return "saved elsewhere"

    made = limited(make_app(REDIS_URL=own_server.url), view, 1)
    assert get(made) == 200


def keepers() -> set[threading.Thread]:
    """Return the threads that have places to renew or to give back."""
    return {thread for thread in threading.enumerate() if thread.name == "redis-guard-places"}


def test_places_that_redis_could_not_be_told_of_are_free_when_it_answers(
    make_app: Make, own_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_app(REDIS_URL=own_server.url, REDIS_GUARD_TIMEOUT=0.3, REDIS_GUARD_OPEN_SECONDS=0.5)
    busy = Busy()
    limited(made, named(busy), 1)
    others = keepers()  # what other tests could not give back has most of a minute to go
    with ThreadPoolExecutor(1) as pool:
        inside = pool.submit(get, made)
        eventually(lambda: busy.inside == 1)
        own_server.pause()
        assert get(made) == 503
        busy.end.set()
        assert inside.result(10) == 200  # its place cannot be given back
    own_server.resume()
    eventually(lambda: get(made) == 200, 3, "the place is free, long before the lease ends")
    eventually(lambda: keepers() <= others, 5, "nothing is owed any more")
    own_server.pause()
    # The server does this later, for nobody.
    assert get(made) == 503
    own_server.resume()
    eventually(lambda: get(made) == 200, 3, "the place is free, long before the lease ends")
    eventually(lambda: keepers() <= others, 5, "nothing is left to be done")
    told = [line for line in caplog.messages if "cannot be freed until Redis is back" in line]
    assert len(told) == 2  # once for each outage


@pytest.mark.parametrize(
    "options",
    [
        {"limit": 0},
        {"limit": 10_001},
        {"limit": True},
        {"limit": 1, "lease": 0},
        {"limit": 1, "key": "cookie"},
        {"limit": 1, "on_outage": "local"},
    ],
)
def test_bad_arguments_stop_the_decoration(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        concurrency_limited(**options)
