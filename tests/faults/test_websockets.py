"""WebSockets while Redis is killed or hung, and while their worker is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import pytest
import redis

from tests.support import GunicornApp, RedisServer, eventually
from tests.support.proxy import Proxy
from tests.support.websockets import (
    CLIENTS,
    UNAVAILABLE,
    Client,
    Closed,
    PywsgiApp,
    Refused,
    SockClient,
    serve,
)

KINDS = "pywsgi", "gevent", "gthread"
#: Seconds: the deadline of an operation, and what this machine may take on top of it.
TIMEOUT, SLACK = 0.5, 4.0
#: The lease of the handlers "guarded": a connection is told before it is over.
LEASE = 2.0
SETTINGS = {
    "REDIS_GUARD_TIMEOUT": str(TIMEOUT),
    "REDIS_GUARD_OPEN_SECONDS": "0.5",
    "REDIS_GUARD_HEALTH_CHECK_INTERVAL": "0.25",
}


def refusal(app: GunicornApp | PywsgiApp, client: type[Client]) -> Refused:
    """Try to connect, which must not succeed, and return what was said."""
    with pytest.raises(Refused) as refused:
        client(app.url, "guarded", "somebody")
    return refused.value


def end_of(connection: Client, within: float) -> Closed:
    """Wait for the end of a connection, with no message before, and return what was said."""
    connection.ws.settimeout(within)
    with pytest.raises(Closed) as closed:
        connection.receive()
    connection.close()
    return closed.value


def nothing_left(app: GunicornApp | PywsgiApp, *, but: Sequence[str] = ()) -> bool:
    """Tell whether neither a place nor a thread or greenlet of a connection is left."""
    state = app.get().json()
    threads = [t for t in state["threads"] if "_service_task" not in t and t not in but]
    return not threads and state["places"] == 0


def works(app: GunicornApp | PywsgiApp, client: type[Client]) -> bool:
    """Tell whether a connection is admitted and a message comes back."""
    try:
        connection = client(app.url, "guarded", "somebody")
    except Refused:
        return False
    try:
        connection.send("hello")
        return connection.receive() == "hello"
    except Closed:
        return False
    finally:
        connection.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
def test_outage_closes_what_is_open_and_refuses_what_is_new(
    kind: str, client: type[Client], own_server: RedisServer
) -> None:
    unavailable = 503 if client is SockClient else 1013
    faults: list[tuple[Callable[[], None], Callable[[], None]]] = [
        (own_server.kill, lambda: own_server.restart()),
        (own_server.pause, own_server.resume),
    ]
    with serve(kind, own_server.url, **SETTINGS) as app:
        for fail, repair in faults:
            eventually(lambda: works(app, client), 15, "service")
            idle = [client(app.url, "guarded", "somebody") for _ in range(3)]
            sending = client(app.url, "guarded", "somebody")
            sending.send("before")
            assert sending.receive() == "before"

            fail()
            failed = time.monotonic()
            sending.send("during")
            said = end_of(sending, TIMEOUT + SLACK)
            assert (said.code, said.reason) == (1013, UNAVAILABLE)
            refused = refusal(app, client)
            assert refused.code == unavailable
            assert UNAVAILABLE in refused.reason
            if client is SockClient:
                assert int(refused.headers["retry-after"]) >= 1
            for connection in idle:
                said = end_of(connection, LEASE + TIMEOUT + SLACK)
                assert (said.code, said.reason) == (1013, UNAVAILABLE)
            assert time.monotonic() - failed < LEASE + TIMEOUT + SLACK
            eventually(lambda: nothing_left(app), 5, f"nothing is left: {app.get().json()}")

            repair()
            eventually(lambda: works(app, client), 15, "service resumes")
        eventually(lambda: nothing_left(app), 5, f"nothing is left: {app.get().json()}")


def test_outage_shorter_than_the_lease_disturbs_nobody_who_is_silent(
    own_server: RedisServer,
) -> None:
    with serve("pywsgi", own_server.url, **SETTINGS) as app:
        connection = SockClient(app.url, "few", "somebody")  # its lease is 4 seconds
        own_server.kill()
        own_server.start()  # without its data: the place is taken anew
        counted = own_server.client()
        eventually(lambda: counted.keys("guard:*"), 5, "the place is counted again")
        counted.close()
        eventually(lambda: works(app, SockClient), 10, "service")
        connection.send("still here")
        assert connection.receive() == "still here"
        connection.close()


def test_places_of_killed_workers_are_free_within_the_lease(redis_server: RedisServer) -> None:
    gone: list[Client] = []
    # A server that stays, so that the next worker's start is not measured.
    other = serve("pywsgi", redis_server.url)
    killed = [serve(kind, redis_server.url) for kind in KINDS]
    with ExitStack() as servers:
        for running in (other, *killed):
            servers.enter_context(running)
        pairs = [(client, kind) for kind in KINDS for client in CLIENTS.values()]
        for app, kind in zip(killed, KINDS, strict=True):
            for client in CLIENTS.values():
                gone += [client(app.url, "few", kind) for _ in range(5)]
        for pid in [app.get().json()["pid"] for app in killed]:
            os.kill(pid, signal.SIGKILL)
        at = time.monotonic()
        for client, user in pairs:  # they count as long as their leases
            with pytest.raises(Refused) as refused:
                client(other.url, "few", user)
            assert refused.value.code == (429 if client is SockClient else 1008)

        def again(client: type[Client], user: str) -> Client | None:
            with contextlib.suppress(Refused):
                return client(other.url, "few", user)
            return None

        for pair in pairs:
            connection = eventually(partial(again, *pair), 15, "connects again", interval=0.1)
            assert connection is not None
            assert time.monotonic() - at < 4 + SLACK  # the lease of "few"
            connection.close()
        for connection in gone:
            connection.ws.shutdown()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("kind", KINDS)
def test_places_of_a_crowd_are_held_however_far_away_redis_is(
    kind: str, own_server: RedisServer
) -> None:
    with (
        Proxy(own_server.port) as proxy,
        serve(kind, proxy.url, REDIS_GUARD_TIMEOUT="5") as app,
        own_server.client() as client,
    ):
        users = [f"user{number}" for number in range(40)]
        crowd = [SockClient(app.url, "few", user) for user in users for _ in range(5)]
        assert len(client.keys("guard:*{*}")) == 2 * len(users)  # and their rates, no probe
        proxy.delay(0.025)  # each way: one after the other, two hundred renewals take ten seconds
        until = time.monotonic() + 7
        while time.monotonic() < until:
            assert places_in(client) == len(crowd)  # each has a lease of 4 seconds
            time.sleep(0.1)
        for connection in crowd:
            connection.close()
        eventually(lambda: places_in(client) == 0, 20, "all places are free")


def places_in(client: redis.Redis) -> int:
    """Return how many leases have not expired by the server's clock."""
    seconds, micros = client.time()
    sets = [key for key in client.scan_iter("guard:*") if client.type(key) == "zset"]
    now = seconds * 1_000_000 + micros
    return sum(int(client.zcount(key, f"({now}", "+inf")) for key in sets)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
def test_places_that_an_outage_kept_are_free_once_it_is_over(
    kind: str, client: type[Client], own_server: RedisServer
) -> None:
    def connects(user: str) -> bool:
        with contextlib.suppress(Refused):
            client(app.url, "one", user).close()
            return True
        return False

    with Proxy(own_server.port) as proxy, serve(kind, proxy.url) as app:  # the default settings
        users = [f"user{number}" for number in range(10)]
        open_ones = [client(app.url, "one", user) for user in users]
        proxy.hang()
        for connection in open_ones:
            connection.send("is there a Redis?")
            assert end_of(connection, TIMEOUT + SLACK).code == 1013
        eventually(lambda: nothing_left(app, but=["redis-guard-places"]), 5, "all are closed")
        proxy.resume()
        eventually(lambda: connects("other"), 10, "service resumes")
        for user in users:  # their leases have most of a minute to go
            eventually(partial(connects, user), 1.5 + SLACK, f"{user} connects again")
        eventually(lambda: nothing_left(app), 5, "nothing is left")
