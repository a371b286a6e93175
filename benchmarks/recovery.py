"""How long requests are refused after Redis is back, and whether a half-dead Redis makes flap.

``python -m benchmarks.recovery gevent`` or ``... gthread``: both apps run at once under gunicorn,
on one server that is taken away in different ways, under a steady load that no limit refuses.
``... flapping gevent``: five minutes with a Redis that answers the checks and fails users, and
with one that answers one second in three.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import itertools
import queue
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.harness import Table, publish, server, versions
from benchmarks.peers import Quota
from tests.support import RedisServer
from tests.support.apps import GunicornApp
from tests.support.faults import LoopbackServer

#: Requests a second to each app, and seconds of load ahead of a fault and after its end.
RATE, BEFORE, AFTER = 30.0, 2.0, 6.0
QUOTA: list[Quota] = [(1000, 60)]
#: Seconds of one measurement of flapping, and of the turns of a server that answers in between.
FLAPPING, ANSWERS, SILENT = 300.0, 1.0, 2.0

APP = """
import logging
from benchmarks.peers import make_app

app = make_app({name!r}, {url!r}, {quotas!r})
if {name!r} == "flask-redis-guard":
    from flask_redis_guard import circuit_state_changed

    def tell(app, **event):
        print("TRANSITION", event["previous"].value, event["current"].value, flush=True)

    circuit_state_changed.connect(tell, app)
"""


@dataclass
class Answer:
    """One request: when it was sent, its status (0: no answer), and how long it took."""

    at: float
    status: int
    took: float


class Load:
    """Requests at a steady rate, each over a connection of its own, however long they take.

    :param port: where the app listens.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._due: queue.SimpleQueue[tuple[float, str] | None] = queue.SimpleQueue()
        self.answers: list[Answer] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(48)]
        self._threads.append(threading.Thread(target=self._pace))

    def __enter__(self) -> Load:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._ended.is_set():
            return
        self._ended.set()
        for _ in self._threads[:-1]:
            self._due.put(None)
        for each in self._threads:
            each.join()

    def _pace(self) -> None:
        begun = time.monotonic()
        for number in itertools.count():
            due = begun + number / RATE
            if self._ended.wait(max(0.0, due - time.monotonic())):
                return
            self._due.put((due, f"client{number}"))

    def _work(self) -> None:
        while True:
            request = self._due.get()
            if request is None:
                return
            due, client = request
            status, sent = 0, time.monotonic()
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=15)
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/", headers={"X-Client": client})
                response = connection.getresponse()
                response.read()
                status = response.status
            connection.close()
            self.answers.append(Answer(sent, status, time.monotonic() - due))


# -- outages --------------------------------------------------------------------------------------


def _killed(running: RedisServer, seconds: float) -> None:
    running.kill()
    time.sleep(seconds)
    running.start()


def _hung(running: RedisServer, seconds: float) -> None:
    running.pause()
    time.sleep(seconds)
    running.resume()


OUTAGES: list[tuple[str, Callable[[RedisServer, float], None], float]] = [
    *((f"killed, back after {away:g} s", _killed, away) for away in (0.5, 1, 2, 6, 20, 60)),
    ("hung for 1 s", _hung, 1),
    ("stalled once for 0.7 s", _hung, 0.7),
]


def apps(url: str, worker: str, stack: ExitStack) -> dict[str, GunicornApp]:
    """Start both contenders' apps with two workers each."""
    names = ["flask-redis-guard"]
    if importlib.util.find_spec("flask_limiter") is not None:
        names.append("Flask-Limiter")
    else:
        print("Flask-Limiter is not installed: not measured", file=sys.stderr)
    threads = 8 if worker == "gthread" else None
    return {
        name: stack.enter_context(
            GunicornApp(
                APP.format(name=name, url=url, quotas=QUOTA),
                worker_class=worker,
                workers=2,
                threads=threads,
            )
        )
        for name in names
    }


def outages(worker: str) -> Table:
    """Return, for each outage and app, how long after its end the last bad answer was."""
    rows: list[list[object]] = []
    for label, take_away, seconds in OUTAGES:
        with ExitStack() as stack:
            running = stack.enter_context(server())
            serving = apps(running.url, worker, stack)
            for app in serving.values():
                for _ in range(20):  # both workers have made their connections
                    app.get()
            loads = {name: stack.enter_context(Load(app.port)) for name, app in serving.items()}
            time.sleep(BEFORE)
            down = time.monotonic()
            take_away(running, seconds)
            up = time.monotonic()
            time.sleep(AFTER)
            for load in loads.values():
                load.__exit__()
            for name, load in loads.items():
                rows.append([label, name, *_told(load.answers, down, up)])
    head = ["outage", "app", "last bad answer after its end, s", "bad answers after it"]
    head += ["not served meanwhile", "longest answer meanwhile, s", "statuses"]
    return Table(f"Recovery, gunicorn -k {worker} -w 2", head, rows, versions())


def _told(answers: list[Answer], down: float, up: float) -> list[object]:
    meanwhile = [a for a in answers if down <= a.at < up]
    late = [a for a in answers if a.at >= up and a.status != 200]
    bad = sum(a.status != 200 for a in meanwhile)
    statuses = Counter(a.status or "none" for a in answers)
    return [
        round(max((a.at - up for a in late), default=0.0), 2),
        len(late),
        f"{bad / max(1, len(meanwhile)):.0%}",
        round(max((a.took for a in meanwhile), default=0.0), 2),
        " ".join(f"{status}: {count}" for status, count in statuses.items()),
    ]


# -- flapping -------------------------------------------------------------------------------------


class HalfDead(LoopbackServer):
    """Passes on what the checks send, and cuts the connection of each caller that runs a script.

    :param target: where the server behind it listens.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self.failing = False
        super().__init__()

    def handle(self, connection: socket.socket) -> None:
        """Forward one connection, a command at a time."""
        with socket.create_connection(("127.0.0.1", self._target)) as behind:
            while asked := connection.recv(65_536):
                if self.failing and b"EVAL" in asked:
                    return
                behind.sendall(asked)
                connection.sendall(behind.recv(65_536))


def _answers_checks_only(running: RedisServer, proxy: HalfDead, ended: threading.Event) -> None:
    proxy.failing = True
    ended.wait()


def _answers_in_between(running: RedisServer, proxy: HalfDead, ended: threading.Event) -> None:
    while not ended.is_set():
        running.pause()
        ended.wait(SILENT)
        running.resume()
        ended.wait(ANSWERS)


HALF_DEAD = {
    "answers checks, fails users": _answers_checks_only,
    f"answers {ANSWERS:g} s in {ANSWERS + SILENT:g} s": _answers_in_between,
}


def flapping(worker: str) -> Table:
    """Return how often the breaker changed in five minutes of a Redis that half works."""

    def endure(label: str) -> list[object]:
        spoil = HALF_DEAD[label]
        with ExitStack() as stack:
            running = stack.enter_context(server())
            proxy = stack.enter_context(HalfDead(running.port))
            app = apps(proxy.url, worker, stack)["flask-redis-guard"]
            for _ in range(20):
                app.get()
            load = stack.enter_context(Load(app.port))
            time.sleep(BEFORE)
            ended, begun = threading.Event(), time.monotonic()
            thread = threading.Thread(target=spoil, args=(running, proxy, ended))
            thread.start()
            time.sleep(FLAPPING)
            ended.set()
            thread.join()
            load.__exit__()
            statuses = Counter(a.status for a in load.answers if a.at >= begun)
            changes = _transitions(app)
            total = sum(statuses.values())
            slow = sum(a.took > 0.4 for a in load.answers if a.at >= begun)
            return [
                label,
                changes["closed open"] + changes["half-open open"],
                changes["half-open closed"],
                f"{statuses[200] / total:.1%}",
                f"{slow / total:.1%}",
                " ".join(f"{status}: {count}" for status, count in statuses.items()),
            ]

    with ThreadPoolExecutor() as pool:
        rows = list(pool.map(endure, HALF_DEAD))
    head = ["server", "openings", "recoveries", "served", "waited for a timeout", "statuses"]
    return Table(
        f"{FLAPPING:g} s of a half-dead Redis, gunicorn -k {worker} -w 2, both workers together",
        head,
        rows,
    )


def _transitions(app: GunicornApp) -> Counter[str]:
    lines = [line for line in app.log().splitlines() if line.startswith("TRANSITION")]
    return Counter(" ".join(line.split()[1:]) for line in lines)


def measure(*arguments: str) -> list[Table]:
    """Measure one worker model."""
    wanted = list(arguments)
    flaps = "flapping" in wanted
    worker = next((name for name in wanted if name != "flapping"), "gevent")
    return [flapping(worker) if flaps else outages(worker)]


if __name__ == "__main__":
    publish(measure(*sys.argv[1:]))
