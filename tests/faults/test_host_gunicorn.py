"""Workers of a real server: kinds of workers, reloads, and workers that come and go."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import GunicornApp, RedisServer, eventually

APP = """
import os
import time
from flask import Flask, jsonify
from flask_redis_guard import RedisGuard, RedisUnavailable

app = Flask("hosted")
guard = RedisGuard(app)

@app.get("/")
def index():
    try:
        guard.client.incr("n")
    except RedisUnavailable as error:
        return f"{os.getpid()} {error.reason}"
    return f"{os.getpid()} served"

@app.get("/nap")
def nap():
    time.sleep(0.1)  # meanwhile others are asked, too
    return index()

@app.get("/workers")
def workers():
    return jsonify([worker.as_dict() for worker in guard.workers()])
"""


def ask(app: GunicornApp) -> tuple[str, str]:
    """The process that answers, and what became of its call."""
    pid, result = app.get().text.split()
    return pid, result


def meet(app: GunicornApp, pids: set[str], number: int) -> None:
    """Ask until so many processes have answered."""

    def met() -> bool:
        pids.add(ask(app)[0])
        return len(pids) >= number

    eventually(met, 20, f"{number} processes have answered")


@pytest.mark.timing
@pytest.mark.parametrize(
    ("kind", "arguments"), [("sync", ()), ("gthread", ("--preload",)), ("gevent", ())]
)
def test_after_the_first_of_eight_has_opened_none_asks(
    own_server: RedisServer, kind: str, arguments: tuple[str, ...]
) -> None:
    app = GunicornApp(
        APP, worker_class=kind, workers=8, env={"REDIS_URL": own_server.url}, arguments=arguments
    )
    with app:
        seen: set[str] = set()
        meet(app, seen, 4)
        own_server.kill()
        began = time.monotonic()
        answers = []
        while time.monotonic() - began < 2:
            answers.append((time.monotonic(), *ask(app)))
        opened = min(at for at, _, result in answers if result == "circuit-open")
        late = [one for one in answers if one[0] > opened + 0.5 and one[2] != "circuit-open"]
        assert late == []
        failed = [pid for _, pid, result in answers if result == "connection"]
        assert len(failed) < 5 * 8  # alone they would fail five times each
        refusing = {pid for _, pid, result in answers if result == "circuit-open"}
        assert len(refusing) >= len(seen) - 1
        own_server.start()
        eventually(lambda: all(ask(app)[1] == "served" for _ in range(24)), 4, "all are served")
        assert "Traceback" not in app.log()


#: How each kind of worker is started, so many at a time.
MODELS = {"sync": None, "gthread": 4, "gevent": None}


def at_once(app: GunicornApp, path: str, pauses: list[float]) -> list[str]:
    """What becomes of requests that are sent after so many seconds each, whoever is answered."""
    with ThreadPoolExecutor(len(pauses)) as threads:
        began = time.monotonic()

        def send(pause: float) -> str:
            time.sleep(max(0.0, began + pause - time.monotonic()))
            return app.get(path, timeout=30).text

        return list(threads.map(send, pauses))


def lost(server: RedisServer, kind: str, workers: int, seconds: float) -> list[str]:
    """How each of 50 requests a second ends, from the moment at which Redis hangs."""
    app = GunicornApp(
        APP, worker_class=kind, workers=workers, threads=MODELS[kind], env={"REDIS_URL": server.url}
    )
    with app:
        seen: set[str] = set()

        def warm() -> bool:
            seen.update(answer.split()[0] for answer in at_once(app, "/nap", [0.0] * 40))
            return len(seen) == workers

        eventually(warm, 20, "all have met Redis")
        server.pause()
        pauses = [number / 50 for number in range(int(50 * seconds))]
        return [answer.split()[1] for answer in at_once(app, "/", pauses)]


@pytest.mark.timing
@pytest.mark.parametrize("kind", MODELS)
def test_eight_lose_at_most_twice_as_many_to_a_timeout_as_one(
    own_server: RedisServer, kind: str
) -> None:
    with RedisServer() as other, ThreadPoolExecutor(2) as both:
        one = both.submit(lost, own_server, kind, 1, 2.5)
        eight = both.submit(lost, other, kind, 8, 2.5)
        alone, together = Counter(one.result()), Counter(eight.result())
    assert 3 <= alone["timeout"] <= 40, alone
    assert together["timeout"] <= 2 * alone["timeout"], (alone, together)
    # Those that were on their way give up as soon as all refuse.
    refused = {"timeout", "given-up", "circuit-open", "worker-busy"}  # the last on a busy machine
    assert set(alone) | set(together) <= refused
    assert together["given-up"] <= 32, together  # 25 come within one timeout


def living(app: GunicornApp) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(app.get("/workers").text)
    return found


def test_workers_that_come_and_go_leave_nothing_behind(own_server: RedisServer) -> None:
    app = GunicornApp(
        APP,
        worker_class="sync",
        workers=2,
        env={"REDIS_URL": own_server.url},
        arguments=("--max-requests", "8"),
    )
    with app:
        pids: set[str] = set()
        meet(app, pids, 4)
        assert app.process is not None
        os.kill(app.process.pid, signal.SIGHUP)
        meet(app, pids, 8)
        workers = eventually(lambda: [w for w in living(app) if w["responds"]], 5)
        assert 1 <= len(workers) <= 4
        assert max(int(str(worker["slot"])) for worker in workers) < 6
        (board,) = (app.directory / "board").iterdir()
        assert board.stat().st_size <= 4096 * 8
        assert "Traceback" not in app.log()
