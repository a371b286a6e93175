"""A Flask app under gunicorn, limited by each contender, loaded by ``wrk``.

``python -m benchmarks.served gevent`` or ``... gthread``. All apps stay up and take turns, so that
a busy machine slows all of them; the ratio is to the same app without a limiter. ``wrk`` is a
package of Debian and of other systems; without it nothing is measured.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import Table, publish, quartiles, server
from benchmarks.peers import APPS, Quota
from tests.support.apps import GunicornApp

SECONDS, ROUNDS, CONNECTIONS = 1, 5, 32
ONE: list[Quota] = [(1000, 60)]
THREE: list[Quota] = [(1000, 60), (10_000, 3600), (100_000, 86400)]
SPENT: list[Quota] = [(5, 3600)]
LIBRARY = {"Flask-Limiter": "flask_limiter", "throttled-py": "throttled"}

# Client ids cycle; the texts of all requests are made once.
SCRIPT = """
local n, texts, i = tonumber(os.getenv("CLIENTS")), {}, 0
function init()
  for k = 1, n do
    wrk.headers["X-Client"] = string.format("c%05d", k)
    texts[k] = wrk.format("GET", "/")
  end
end
function request() i = i % n + 1 return texts[i] end
function done(summary)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %d\\n", summary.requests, summary.duration, e.status,
    e.connect + e.read + e.write + e.timeout))
end
"""


class Load:
    """Sends requests with ``wrk`` and tells how many were answered in a second."""

    def __init__(self, clients: int) -> None:
        self._clients = clients
        self._directory = tempfile.TemporaryDirectory(prefix="wrk-")
        self._script = Path(self._directory.name, "clients.lua")
        self._script.write_text(SCRIPT)

    def __call__(self, url: str, seconds: int = SECONDS) -> tuple[int, float, int, int]:
        """Return requests, requests a second, replies that were no 2xx, and socket errors."""
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(self._script), url]
        env = {**os.environ, "CLIENTS": str(self._clients)}
        told = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
        number, microseconds, refused, errors = map(int, told.split("RESULT ")[1].split())
        return number, number / (microseconds / 1e6), refused, errors


def serve(name: str, url: str, quotas: list[Quota], worker: str) -> GunicornApp:
    """Return a contender's app under gunicorn, with two workers."""
    source = f"""
        from benchmarks.peers import make_app
        app = make_app({name!r}, {url!r}, {quotas!r})
    """
    threads = 4 if worker == "gthread" else None
    return GunicornApp(source, worker_class=worker, workers=2, threads=threads)


def cpu_seconds(app: GunicornApp) -> float:
    """Return the CPU seconds that an app's workers have used so far."""
    assert app.process is not None
    workers = psutil.Process(app.process.pid).children()
    return sum(sum(one.cpu_times()[:2]) for one in workers)


def compare(title: str, plan: list[tuple[str, list[Quota]]], worker: str, clients: int) -> Table:
    """Measure apps in turn.

    :param plan: contenders and their quotas; the first is the baseline.
    :param clients: how many ids the requests cycle through.
    """
    load = Load(clients)
    with ExitStack() as stack:
        running = stack.enter_context(server(options={"databases": len(plan) + 1}))
        apps: dict[str, GunicornApp] = {}
        for database, (name, quotas) in enumerate(plan):
            url = running.url.rpartition("/")[0] + f"/{database}"
            count = f", {len(quotas)} limit{'s' if len(quotas) > 1 else ''}" if quotas else ""
            label = name + count
            apps[label] = stack.enter_context(serve(name, url, quotas, worker))
        base, dice = next(iter(apps)), random.Random(2)
        speed: dict[str, list[float]] = {label: [] for label in apps}
        cpu: dict[str, list[float]] = {label: [] for label in apps}
        wrong: dict[str, str] = {}
        for app in apps.values():
            load(app.url)
        for _ in range(ROUNDS):
            for label in dice.sample(list(apps), len(apps)):
                if clients > 100:
                    with running.client() as admin:
                        admin.flushall()
                before = cpu_seconds(apps[label])
                number, each_second, refused, errors = load(apps[label].url)
                speed[label].append(each_second)
                cpu[label].append((cpu_seconds(apps[label]) - before) * 1e6 / number)
                wrong[label] = f"{refused / number:.0%} / {errors}"
    rows: list[list[Any]] = []
    for label in apps:
        ratios = [mine / theirs for mine, theirs in zip(speed[label], speed[base], strict=True)]
        burdens = [mine / theirs for mine, theirs in zip(cpu[label], cpu[base], strict=True)]
        rows.append(
            [
                label,
                round(statistics.median(speed[label])),
                statistics.median(ratios),
                quartiles(ratios, 2),
                statistics.median(burdens),
                wrong[label],
            ]
        )
    head = ["app", "requests/s", "ratio", "quartiles", "worker CPU ratio", "429 / socket errors"]
    return Table(f"{title}, gunicorn -k {worker} -w 2", head, rows)


def measure(worker: str = "gevent") -> list[Table]:
    """Return a table of admitted and one of refused requests."""
    if shutil.which("wrk") is None:
        print("wrk is not installed: served apps are not measured", file=sys.stderr)
        return []
    names = [n for n in APPS if importlib.util.find_spec(LIBRARY.get(n, "flask"))]
    others = [name for name in names if name != "no limiter"]
    baseline: tuple[str, list[Quota]] = ("no limiter", [])
    admitted = [baseline, *((name, quotas) for name in others for quotas in (ONE, THREE))]
    refused = [baseline, *((name, SPENT) for name in others)]
    return [
        compare("Admitted requests", admitted, worker, 1000),
        compare("Refused requests (429)", refused, worker, 50),
    ]


if __name__ == "__main__":
    publish(measure(*(sys.argv[1:2] or ["gevent"])))
