"""Workers of a real server: kinds of workers, reloads, and workers that come and go."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from tests.support import GunicornApp, RedisServer, eventually

APP = """
import os
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
