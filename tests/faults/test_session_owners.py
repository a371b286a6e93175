"""Nobody is ever shown another's session, whatever happens to the connections that callers share.

``tests/gevent/test_session_faults.py`` runs this module once more, with greenlets for threads.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask.testing import FlaskClient

from flask_redis_guard import rate_limited, session
from tests.support import Proxy, RedisServer
from tests.support.session_apps import session_app

USERS = 24
FAULTS = 40
#: Seconds of one operation, and between two faults at most.
TIMEOUT, PAUSE = 0.3, 0.08


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def strike(proxy: Proxy, done: threading.Event, kinds: Counter[str]) -> None:
    """Disturb the connections again and again, at moments that nobody chose."""
    chance = random.Random(7)
    for _ in range(FAULTS):
        kind = chance.choice(["cut", "cut in a reply", "hang", "hang in a reply", "delay"])
        kinds[kind] += 1
        if kind == "cut":
            proxy.cut()
        elif kind == "cut in a reply":
            proxy.cut_after(chance.randrange(1, 400))
        elif kind == "hang in a reply":
            proxy.hang_after(chance.randrange(1, 400))
        elif kind == "hang":
            proxy.hang()
        else:
            proxy.delay(chance.uniform(0.01, TIMEOUT))
        done.wait(chance.uniform(0, PAUSE))
        if kind.startswith("hang"):
            done.wait(TIMEOUT / 2)
        proxy.resume()
        proxy.delay(0)
        done.wait(chance.uniform(0, PAUSE))
    done.set()


def test_everybody_sees_their_own_session_or_nothing(server: RedisServer) -> None:
    with Proxy(server.port) as proxy:
        app, _ = session_app(
            proxy.url,
            REDIS_GUARD_TIMEOUT=TIMEOUT,
            REDIS_GUARD_FAILURE_THRESHOLD=10_000,  # every request is to meet the faults itself
            REDIS_GUARD_MINIMUM_CALLS=10_000,
        )

        @app.get("/mine")
        @rate_limited("1000000/minute", key="user")
        def mine() -> dict[str, object]:
            session["count"] = session.get("count", 0) + 1
            return {"user": session["user"], "text": session["text"], "count": session["count"]}

        def log_in(name: str) -> FlaskClient:
            client = app.test_client()
            text = name * 50  # so that replies differ in length, and come in several pieces
            assert client.post("/write", json={"text": text}).status_code == 200
            assert client.post(f"/login/{name}").status_code == 200
            return client

        done, kinds, statuses = threading.Event(), Counter[str](), Counter[int]()
        names = [f"user{number}" * (1 + number % 5) for number in range(USERS)]
        clients = [log_in(name) for name in names]

        def keep_asking(client: FlaskClient, name: str) -> tuple[Counter[int], int]:
            seen, acknowledged = Counter[int](), 0
            while not done.is_set():
                response = client.get("/mine")
                seen[response.status_code] += 1
                if response.status_code == 503:
                    done.wait(0.01)
                    continue
                assert response.status_code == 200
                shown = response.get_json()
                assert (shown["user"], shown["text"]) == (name, name * 50)
                # What was told is saved; of a 503 nobody knows whether it is.
                assert acknowledged < shown["count"] <= seen.total()
                acknowledged = shown["count"]
            return seen, acknowledged

        with ThreadPoolExecutor(USERS + 1) as pool:
            striker = pool.submit(strike, proxy, done, kinds)
            try:
                for seen, _ in pool.map(keep_asking, clients, names):
                    statuses.update(seen)
            finally:
                done.set()
            striker.result()

        print(f"\nsessions under faults: {dict(statuses)}, {dict(kinds)}")
        assert sum(kinds.values()) == FAULTS
        assert statuses[200] > 10 * USERS
        assert statuses[503] > FAULTS / 4  # the faults were met
        for client, name in zip(clients, names, strict=True):
            assert client.get("/mine").get_json()["user"] == name


def test_a_new_connection_hands_no_late_reply_to_the_next_caller(server: RedisServer) -> None:
    """The command of the first is sent behind the handshake, and neither is answered in time."""
    with Proxy(server.port) as proxy:
        app, guard = session_app(proxy.url, REDIS_GUARD_TIMEOUT=TIMEOUT)
        clients = {name: app.test_client() for name in ("ann", "bob")}
        for name, client in clients.items():
            assert client.post(f"/login/{name}").status_code == 200
        for _ in range(3):
            guard.client_for(app).connection_pool.disconnect()
            proxy.hang()
            assert clients["ann"].get("/read").status_code == 503
            proxy.resume()
            assert clients["bob"].get("/read").get_json() == {"user": "bob"}
            assert clients["ann"].get("/read").get_json() == {"user": "ann"}
