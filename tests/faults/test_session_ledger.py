"""The ledger: what was acknowledged is there, however often the server dies in between."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask.testing import FlaskClient

from tests.support import RedisServer, eventually
from tests.support.session_apps import session_app

CLIENTS = 50
WRITES = 2000
KILLS = 10


@pytest.fixture
def durable_server() -> Iterator[RedisServer]:
    with RedisServer(options={"appendonly": "yes", "appendfsync": "always"}) as server:
        yield server


def test_every_acknowledged_write_survives(
    durable_server: RedisServer, record_property: Callable[[str, object], None]
) -> None:
    app, _ = session_app(
        durable_server.url, REDIS_GUARD_OPEN_SECONDS=0.05, REDIS_GUARD_HALF_OPEN_PERMITS=5
    )
    counts: Counter[str] = Counter()
    lock, pause = threading.Lock(), threading.Event()
    numbers = itertools.count()

    def note(what: str) -> None:
        with lock:
            counts[what] += 1

    def keep_writing(client: FlaskClient) -> list[int]:
        """Write numbers one by one, each until it is acknowledged, and return them."""
        ledger: list[int] = []
        while len(ledger) < WRITES // CLIENTS:
            number = next(numbers)
            while True:
                response = client.post("/write", json={f"n{number}": number})
                if response.status_code == 200:
                    break
                assert response.status_code == 503
                assert "Set-Cookie" not in response.headers
                note("refused")
                pause.wait(0.02)
            note("acknowledged")
            ledger.append(number)
        return ledger

    def keep_killing() -> None:
        for kill in range(1, KILLS + 1):
            due = kill * WRITES // (KILLS + 1)
            eventually(lambda due=due: counts["acknowledged"] >= due, 60)  # type: ignore[misc]
            durable_server.kill()
            note("killed")
            durable_server.start()

    clients = [app.test_client() for _ in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        killer = pool.submit(keep_killing)
        ledgers = list(pool.map(keep_writing, clients))
        killer.result()

    def lost(client: FlaskClient, ledger: list[int]) -> set[int]:
        return set(ledger) - set(client.get("/read").json.values())  # type: ignore[union-attr]

    eventually(lambda: clients[0].get("/read").status_code == 200, 10)
    missing = set[int]().union(*map(lost, clients, ledgers))
    counts["lost"] = len(missing)
    record_property("ledger", dict(counts))
    print(f"\nledger: {dict(counts)}")
    assert (counts["acknowledged"], counts["killed"], missing) == (WRITES, KILLS, set())
    assert counts["refused"] >= KILLS  # the outages were noticed
