"""Every fault at every point of a request that changes its session ends in the same 503.

``tests/gevent/test_session_faults.py`` runs this module once more, with greenlets for threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask, Response, flash, redirect, session
from flask.testing import FlaskClient

from flask_redis_guard import RedisUnavailable, rate_limited, request_refused
from tests.support import Proxy, RedisServer
from tests.support.session_apps import session_app

#: Seconds; short where the fault is one that has to be waited for.
TIMEOUT = {"hang": 0.4}
PATIENT = 1.5
#: Seconds from a view's end to the fault that meets its save on the way.
IN_FLIGHT = 0.05


class World:
    """A server, a proxy before it, an app with guarded sessions, and the fault to come."""

    def __init__(self, server: RedisServer, proxy: Proxy, timeout: float) -> None:
        self.server, self.proxy = server, proxy
        #: Two operations, and what a busy machine adds.
        self.budget = 2 * timeout + 1.0
        self.app, self.guard = session_app(
            proxy.url,
            REDIS_GUARD_TIMEOUT=timeout,
            REDIS_GUARD_FAILURE_THRESHOLD=1000,  # every request is to meet the fault itself
            REDIS_GUARD_MINIMUM_CALLS=1000,
        )
        self.before_save: Callable[[], object] = lambda: None
        #: Why requests were refused.
        self.reasons: set[str] = set()
        _add_order(self.app, self)

    def admin(self, *words: object) -> None:
        """Tell the server something, around the proxy."""
        with self.server.client() as plain:
            plain.execute_command(*words)

    def heal(self) -> None:
        self.proxy.resume()
        if not self.server.alive:
            self.server.start()
        self.server.resume()
        self.admin("REPLICAOF", "NO", "ONE")
        self.admin("CONFIG", "SET", "maxmemory", "0")


def _add_order(app: Flask, world: World) -> None:
    @app.post("/order")
    def order() -> Any:
        session["count"] += 1
        world.before_save()
        response = redirect("/saved")
        response.set_cookie("remember_token", "saved")
        response.set_etag("saved")
        return response

    @app.post("/goodbye")
    def goodbye() -> str:
        session.clear()
        flash("logged out")
        world.before_save()
        return "saved"

    @app.get("/mine")
    @rate_limited("1000/minute", key="user")
    def mine() -> str:
        return "saved"

    @app.get("/stream")
    def stream() -> Response:
        session["count"] += 1
        world.before_save()
        return Response(iter(["saved"]))


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def world(server: RedisServer, request: pytest.FixtureRequest) -> Iterator[World]:
    fault = request.node.callspec.params["fault"] if hasattr(request.node, "callspec") else ""
    with Proxy(server.port) as proxy:
        world = World(server, proxy, TIMEOUT.get(fault, PATIENT))
        world.heal()
        server.reset()

        def refused(app: Flask, error: RedisUnavailable, endpoint: str) -> None:
            world.reasons.add(error.reason)

        with request_refused.connected_to(refused, world.app):
            yield world
        world.heal()


FAULTS: dict[str, Callable[[World], object]] = {
    "kill": lambda world: world.server.kill(),
    "hang": lambda world: world.server.pause(),
    "cut": lambda world: world.proxy.cut_after(3),  # in the middle of the next reply
    "read-only": lambda world: world.admin("REPLICAOF", "127.0.0.1", "1"),
    "out-of-memory": lambda world: world.admin("CONFIG", "SET", "maxmemory", "1"),
}


REASONS = {
    "kill": "connection",
    "hang": "timeout",
    "cut": "connection",
    "read-only": "read-only",
    "out-of-memory": "out-of-memory",
}


def logged_in(world: World, count: int) -> list[FlaskClient]:
    clients = [world.app.test_client() for _ in range(count)]
    for client in clients:
        assert client.post("/write", json={"count": 0}).status_code == 200
        assert client.post("/order").status_code == 302  # its scripts and connections are ready
    return clients


def in_flight(world: World, fault: str) -> Callable[[], None]:
    """Let the fault happen while the saves are on their way: the proxy holds them meanwhile."""

    def strike() -> None:
        if fault == "cut":
            world.proxy.cut()
        else:
            FAULTS[fault](world)
        world.proxy.resume()

    def before_save() -> None:
        world.proxy.hang()
        threading.Timer(IN_FLIGHT, strike).start()

    return before_save


def once(act: Callable[[], object]) -> Callable[[], object]:
    """Whoo comes first acts; nobody passes before that is done."""
    lock, done = threading.Lock(), threading.Event()

    def pass_through() -> None:
        with lock:
            if not done.is_set():
                act()
                done.set()

    return pass_through


def assert_refused(response: Any) -> None:
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert "saved" not in f"{response.headers}{response.text}"
    assert not {"Set-Cookie", "Location", "ETag"} & set(response.headers.keys())


@pytest.mark.parametrize("point", ["before open", "between open and save", "during save"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_change_is_refused(world: World, fault: str, point: str) -> None:
    # A cut in the middle of a reply is one connection's.
    clients = logged_in(world, 1 if fault == "cut" else 3)
    if point == "before open":
        FAULTS[fault](world)
    elif point == "between open and save":
        world.before_save = once(lambda: FAULTS[fault](world))
    else:
        world.before_save = once(in_flight(world, fault))

    def order(client: FlaskClient) -> tuple[Any, float]:
        started = time.monotonic()
        return client.post("/order"), time.monotonic() - started

    with ThreadPoolExecutor(len(clients)) as pool:
        for response, seconds in pool.map(order, clients):
            assert_refused(response)
            assert seconds < world.budget
    assert world.reasons == {REASONS[fault]}
    assert clients[0].get("/untouched").status_code == 200

    world.before_save = lambda: None
    world.heal()
    assert clients[0].get("/read").status_code == 200
    if fault != "kill":  # nothing is on disk here
        before = clients[0].get("/read").json["count"]  # type: ignore[index]
        assert before in (1, 2)  # whether the refused one was carried out, nobody could tell
        assert clients[0].post("/order").status_code == 302
        assert clients[0].get("/read").json["count"] == before + 1  # type: ignore[index]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_streamed_answer_is_refused_before_its_first_byte(world: World, fault: str) -> None:
    (client,) = logged_in(world, 1)
    world.before_save = lambda: FAULTS[fault](world)
    assert_refused(client.get("/stream"))


@pytest.mark.parametrize("fault", ["kill", "hang", "read-only"])
def test_who_reads_is_refused_and_is_never_anonymous(world: World, fault: str) -> None:
    (client,) = logged_in(world, 1)
    FAULTS[fault](world)
    assert_refused(client.get("/read"))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_logout_that_did_not_happen_is_known(world: World, fault: str) -> None:
    (client,) = logged_in(world, 1)
    FAULTS[fault](world)
    response = client.post("/logout")
    if fault == "out-of-memory":  # what frees memory is let through
        assert (response.status_code, client.get("/read").json) == (200, {})
    else:
        assert_refused(response)


@pytest.mark.parametrize("point", ["before open", "between open and save", "during save"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_logout_with_a_message_that_did_not_happen_is_known(
    world: World, fault: str, point: str
) -> None:
    (client,) = logged_in(world, 1)
    client.post("/login/5")
    if point == "before open":
        FAULTS[fault](world)
    elif point == "between open and save":
        world.before_save = once(lambda: FAULTS[fault](world))
    else:
        world.before_save = once(in_flight(world, fault))
    assert_refused(client.post("/goodbye"))

    world.before_save = lambda: None
    world.heal()
    left = client.get("/read").json
    if fault in ("read-only", "out-of-memory"):  # said so before anything was done
        assert left == {"count": 1, "user": "5"}
        assert client.post("/goodbye").status_code == 200
        assert list(client.get("/read").json or ()) == ["_flashes"]
    else:
        assert left in ({}, {"count": 1, "user": "5"})
    store = world.guard.sessions_for(world.app)
    assert store.revoke_user(5) == (fault in ("cut", "hang") and left != {})


@pytest.mark.parametrize("fault", FAULTS)
def test_whom_a_limit_is_to_count_by_a_session_is_refused(world: World, fault: str) -> None:
    """Counted by address instead, one user would get a limit more for each outage."""
    (client,) = logged_in(world, 1)
    client.post("/login/5")
    assert client.get("/mine").status_code == 200
    FAULTS[fault](world)
    assert_refused(client.get("/mine"))


@pytest.mark.parametrize("fault", ["kill", "hang", "cut"])
def test_of_several_cookies_none_counts_while_nobody_can_tell(world: World, fault: str) -> None:
    dead, alive = logged_in(world, 2)
    cookies = [client.get_cookie("session") for client in (dead, alive)]
    dead.post("/logout")
    header = "; ".join(f"session={cookie.value}" for cookie in cookies if cookie is not None)
    both = world.app.test_client(use_cookies=False)
    assert both.get("/read", headers={"Cookie": header}).json == {"count": 1}
    FAULTS[fault](world)
    assert_refused(both.get("/read", headers={"Cookie": header}))


def test_with_the_breaker_open_it_is_refused_at_once(world: World) -> None:
    (client,) = logged_in(world, 1)
    with world.app.app_context():
        world.guard.breaker.force_open()
    started = time.monotonic()
    assert_refused(client.post("/order"))
    assert time.monotonic() - started < PATIENT
    assert client.get("/untouched").status_code == 200
    assert client.get("/read").status_code == 503
