"""A program: processes full of greenlets that hammer one key, each with an app's guarded client.

``python -m tests.integration.limiting.hammer URL PROCESSES GREENLETS SECONDS RATE...`` prints
"ready", waits for a line, hammers, and prints one JSON object: for each rate the admissions (times
of sending and of the answer, on the monotonic clock, which all processes of a machine share), and
how many requests were refused and how many got no answer.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from tempfile import TemporaryDirectory  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
from flask import Flask  # noqa: E402

from flask_redis_guard import RedisGuard, RedisUnavailable  # noqa: E402


def hammer(url: str, greenlets: int, seconds: float, rates: list[str]) -> dict[str, Any]:
    """What one process does."""
    app = Flask("hammer")
    app.config.update(
        REDIS_URL=url, REDIS_GUARD_HEALTH_CHECK_INTERVAL=0.2, REDIS_GUARD_OPEN_SECONDS=0.2
    )
    guard = RedisGuard(app)
    found: dict[str, Any] = {"refused": 0, "failed": 0, "admitted": {rate: [] for rate in rates}}

    def work() -> None:
        with app.app_context():
            while time.monotonic() < until:
                for rate in rates:
                    ask(rate)

    def ask(rate: str) -> None:
        sent = time.monotonic()
        try:
            decision = guard.limiter.hit(rate, "everyone")
        except RedisUnavailable:
            found["failed"] += 1
            gevent.sleep(0.02)
            return
        if decision.allowed:
            found["admitted"][rate].append((sent, time.monotonic()))
        else:
            found["refused"] += 1
        gevent.sleep(0.005 if decision.remembered else 0)

    until = time.monotonic() + seconds
    gevent.joinall([gevent.spawn(work) for _ in range(greenlets)], raise_error=True)
    return found


def main(url: str, processes: str, greenlets: str, seconds: str, *rates: str) -> None:
    with TemporaryDirectory() as directory:
        print("ready", flush=True)
        sys.stdin.readline()
        children = []
        for number in range(int(processes)):
            child = os.fork()
            if not child:
                found = hammer(url, int(greenlets), float(seconds), list(rates))
                Path(directory, str(number)).write_text(json.dumps(found))
                os._exit(0)
            children.append(child)
        for child in children:
            assert os.waitpid(child, 0)[1] == 0, "a process failed"
        results = [json.loads(file.read_text()) for file in Path(directory).iterdir()]
    total = {name: sum(one[name] for one in results) for name in ("refused", "failed")}
    admitted = {rate: [a for one in results for a in one["admitted"][rate]] for rate in rates}
    print(json.dumps({**total, "processes": len(results), "admitted": admitted}))


if __name__ == "__main__":
    main(*sys.argv[1:])
