"""The whole product under gunicorn: exact limits, an outage, and the way back."""

from __future__ import annotations

import http.client
import re
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support import GunicornApp, RedisServer, eventually
from tests.support.apps import ROOT

pytestmark = pytest.mark.timing

APP = """
    import os
    from flask import Flask
    from flask_redis_guard import RedisGuard, circuit_state_changed, rate_limited

    app = Flask(__name__)
    guard = RedisGuard(app)

    @circuit_state_changed.connect
    def note(sender, **event):
        line = f"{os.getpid()} {event['previous'].value} {event['current'].value}\\n"
        with open(os.environ["TRANSITIONS"], "a") as file:
            file.write(line)

    @app.get("/")
    def index():
        return "up"

    @app.get("/tight")
    @rate_limited("5/minute")
    def tight():
        return "ok"

    @app.get("/wide")
    @rate_limited("1000000/minute")
    def wide():
        return "ok"
"""
SHOP = """
    from flask import Flask
    from flask_redis_guard import RedisGuard, rate_limited

    app = Flask(__name__)
    guard = RedisGuard(app)
    with app.app_context():
        guard.client.ping()  # a connection is made before the workers are forked off

    @app.get("/")
    @rate_limited("1000000/minute")
    def index():
        return "up"
"""
KINDS = [
    ("sync", ()),
    ("gthread", ("--threads", "4")),
    ("gevent", ()),
    ("sync", ("--preload",)),
    ("gthread", ("--threads", "4", "--preload")),
    ("gevent", ("--preload",)),
]
WORKERS = {"gevent": (2, None), "gthread": (1, 8)}
OPEN_SECONDS = 1
CHECK_INTERVAL = 0.1
# Half-open, users wait for the background check: at most its interval of 5 seconds, and a fifth
# more so that they do not come in step.
LONGEST_RETRY = 6
LONGEST = 1.5  # seconds: the timeout, and room for a busy machine


@dataclass(frozen=True)
class Answer:
    status: int
    retry_after: int | None
    seconds: float


def storm(port: int, path: str, requests: int) -> list[Answer]:
    """Send so many requests at once, each over a connection of its own."""
    answers: list[Answer] = []
    barrier = threading.Barrier(requests)

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        barrier.wait()
        started = time.monotonic()
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        after = response.getheader("Retry-After")
        seconds = time.monotonic() - started
        connection.close()
        answers.append(Answer(response.status, int(after) if after else None, seconds))

    threads = [threading.Thread(target=ask) for _ in range(requests)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == requests
    return answers


def statuses(answers: Sequence[Answer]) -> dict[int, int]:
    return dict(Counter(answer.status for answer in answers))


class Running:
    """A server, the app on it, and what the app's receivers wrote down."""

    def __init__(self, server: RedisServer, worker_class: str, directory: Path, **env: str) -> None:
        self.server = server
        self.workers, threads = WORKERS[worker_class]
        self.notes = directory / "transitions"
        self.notes.touch()
        self.app = GunicornApp(
            APP,
            worker_class=worker_class,
            workers=self.workers,
            threads=threads,
            env={"REDIS_URL": server.url, "TRANSITIONS": str(self.notes), **env},
        )

    def storm(self, path: str, requests: int) -> list[Answer]:
        return storm(self.app.port, path, requests)

    def transitions(self) -> dict[str, list[tuple[str, str]]]:
        """Of each worker, in order."""
        found: dict[str, list[tuple[str, str]]] = {}
        for line in self.notes.read_text().splitlines():
            pid, previous, current = line.split()
            found.setdefault(pid, []).append((previous, current))
        return found

    def all_open(self) -> bool:
        opened = [steps for steps in self.transitions().values() if ("closed", "open") in steps]
        return len(opened) == self.workers


@pytest.fixture(params=WORKERS)
def running(
    request: pytest.FixtureRequest, own_server: RedisServer, tmp_path: Path
) -> Iterator[Running]:
    running = Running(
        own_server, request.param, tmp_path, REDIS_GUARD_OPEN_SECONDS=str(OPEN_SECONDS)
    )
    with running.app:
        yield running


def endure(running: Running, longest_retry: int) -> None:
    """Ask until every worker's breaker is open; all answers must be what was promised."""
    deadline = time.monotonic() + 20
    while not running.all_open():
        assert time.monotonic() < deadline, running.app.log()
        for answer in running.storm("/wide", 24):
            assert answer.status == 503, running.app.log()
            assert answer.retry_after is not None
            assert 1 <= answer.retry_after <= longest_retry
            assert answer.seconds < LONGEST


def test_limit_and_outages(running: Running) -> None:
    assert statuses(running.storm("/tight", 200)) == {200: 5, 429: 195}
    server = running.server
    for broken, restored in ((server.kill, server.start), (server.pause, server.resume)):
        running.notes.write_text("")
        broken()
        endure(running, LONGEST_RETRY)
        # And while it stays open, half-open probes included.
        until = time.monotonic() + 1.25 * OPEN_SECONDS
        while time.monotonic() < until:
            for answer in running.storm("/wide", 8):
                assert answer.status == 503
                assert answer.retry_after is not None
                assert 1 <= answer.retry_after <= LONGEST_RETRY
                assert answer.seconds < LONGEST
        restored()
        eventually(lambda: statuses(running.storm("/wide", 16)) == {200: 16}, 15, "service resumes")
        eventually(
            lambda: all(steps[-1][1] == "closed" for steps in running.transitions().values()),
            10,
            "every worker closed its breaker",
        )
        workers = running.transitions()
        assert len(workers) == running.workers
        for steps in workers.values():
            assert steps.count(("closed", "open")) == 1
            # By its own probes, or by those of another worker of the host.
            assert [current for _, current in steps].count("closed") == 1
            assert steps[0] == ("closed", "open")
            for before, after in pairwise(steps):
                assert before[1] == after[0]
    log = running.app.log()
    opened = [log.count(text) for text in ("breaker opening after", "breaker opening, what needs")]
    assert sum(opened) == 2 * running.workers
    assert opened[0] >= 2
    assert "Traceback" not in log


def recipe() -> str:
    """The configuration file that the page *Deployment* shows."""
    page = (ROOT / "docs" / "deployment.md").read_text()
    found = re.search(r"```python\n(# gunicorn.conf.py\n.*?)```", page, re.DOTALL)
    assert found
    return found[1]


def serve_shop(
    server: RedisServer,
    directory: Path,
    worker: str,
    arguments: tuple[str, ...],
    configuration: str,
) -> GunicornApp:
    path = directory / "gunicorn.conf.py"
    path.write_text(configuration)
    app = GunicornApp(
        "from shop import app",
        worker_class=worker,
        workers=2,
        arguments=("--config", str(path), *arguments),
        env={"REDIS_URL": server.url, "REDIS_GUARD_HEALTH_CHECK_INTERVAL": str(CHECK_INTERVAL)},
    )
    (app.directory / "shop.py").write_text(textwrap.dedent(SHOP))
    return app


def probes(server: RedisServer) -> int:
    with server.client() as helper:
        return int(helper.info("commandstats").get("cmdstat_set", {}).get("calls", 0))


@pytest.mark.parametrize(("worker", "arguments"), KINDS)
def test_recipe_of_the_quick_start_serves_every_kind_of_worker(
    own_server: RedisServer, tmp_path: Path, worker: str, arguments: tuple[str, ...]
) -> None:
    with serve_shop(own_server, tmp_path, worker, arguments, recipe()) as app:
        before, began = probes(own_server), time.monotonic()
        checks = 0
        while checks < 10 or time.monotonic() < began + 1:
            assert statuses(storm(app.port, "/", 8)) == {200: 8}
            checks = probes(own_server) - before
            assert time.monotonic() < began + 10, checks
        turns = (time.monotonic() - began) / CHECK_INTERVAL
        # The client of another test may look for its server, which is gone, at this one's port.
        lines = [line for line in app.log().splitlines() if "Invalid HTTP request" not in line]
        log = "\n".join(lines)
    assert "Traceback" not in log
    assert "WARNING" not in log
    assert "greenlet" not in log
    assert "gevent patched sockets" not in log
    processes = 3 if "--preload" in arguments else 2  # a preloading master has called Redis too
    # At most a fifth more than the interval says, so that they do not come in step, and the first.
    assert checks <= (1.2 * turns + 1) * processes


@pytest.mark.parametrize("arguments", [(), ("--preload",)])
def test_start_ahead_of_gevents_patches_waits_for_the_first_request_and_says_so(
    own_server: RedisServer, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    early = recipe().replace("def post_worker_init(worker)", "def post_fork(server, worker)")
    with serve_shop(own_server, tmp_path, "gevent", arguments, early) as app:
        for _ in range(10):
            assert statuses(storm(app.port, "/", 8)) == {200: 8}
            time.sleep(0.1)
        eventually(lambda: probes(own_server) > 4, 5)
        log = app.log()
    assert log.count("post_worker_init, not in post_fork") == 2
    assert "Traceback" not in log


def test_default_settings_tell_clients_to_come_back_within_40_seconds(
    own_server: RedisServer, tmp_path: Path
) -> None:
    running = Running(own_server, "gevent", tmp_path)
    with running.app:
        running.storm("/wide", 8)
        own_server.kill()
        endure(running, 40)
        for answer in running.storm("/wide", 24):
            assert answer.status == 503
            assert answer.retry_after is not None
            assert 20 <= answer.retry_after <= 40
