"""Processes hammering one key while the server loses its scripts and restarts."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from tests.support import RedisServer

WORKER = """
import json, sys, threading, time
import redis
from flask_redis_guard.errors import RedisUnavailable
from flask_redis_guard.limiting.limiter import RateLimiter

port, limit = int(sys.argv[1]), sys.argv[2]
client = redis.Redis(port=port, retry=None, socket_timeout=2)
limiter = RateLimiter(client)
admitted, refused, failed = [], [], []

def work():
    while (sent := time.monotonic()) < until:
        try:
            decision = limiter.hit(limit, "everyone")
        except RedisUnavailable:
            failed.append(sent)
            time.sleep(0.01)
            continue
        (admitted if decision.allowed else refused).append((sent, time.monotonic()))
        if decision.remembered:
            time.sleep(0.001)

print("ready", flush=True)
until = float(input())
threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps({"admitted": admitted, "refused": len(refused), "failed": len(failed)}))
"""


@pytest.mark.parametrize("limit", [10, 200])
def test_not_one_admission_above_the_limit(limit: int) -> None:
    # The monotonic clock is one for all processes of a machine. A cost is admitted between
    # sending and answer, so that only what lies inside a second for certain may be held against it.
    with RedisServer(options={"appendonly": "yes", "appendfsync": "always"}) as server:
        command = [sys.executable, "-c", WORKER, str(server.port), f"{limit}/second"]
        workers = [
            subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for _ in range(4)
        ]
        try:
            for worker in workers:
                assert worker.stdout is not None
                assert worker.stdout.readline() == "ready\n"
            until = time.monotonic() + 3.5
            for worker in workers:
                assert worker.stdin is not None
                worker.stdin.write(f"{until}\n")
                worker.stdin.flush()
            time.sleep(1.2)
            server.client().script_flush()
            time.sleep(0.7)
            server.restart()
            restarted = time.monotonic()
            outputs = [json.loads(worker.communicate(timeout=30)[0]) for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    admitted = sorted((tuple(a) for o in outputs for a in o["admitted"]), key=lambda a: a[1])
    for index, (sent, _) in enumerate(admitted):
        inside = sum(1 for s, answered in admitted if s >= sent and answered < sent + 1)
        assert inside <= limit, f"{inside} admitted within a second from number {index} on"
    assert len(admitted) >= 2 * limit
    assert sum(o["refused"] for o in outputs) > 0
    assert any(sent > restarted for sent, _ in admitted)
