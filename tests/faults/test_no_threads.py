"""A process that cannot start threads for a while, as at a limit on processes or memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support import RedisServer

ROOT = Path(__file__).resolve().parents[2]

# In a process of its own: the limit is the whole process's.
SCRIPT = """
import json, resource, sys, threading

from flask import Flask
from flask_redis_guard import RedisGuard, RedisUnavailable
from flask_redis_guard.limiting.slots import Place
from tests.support import eventually

told = []
app = Flask("starved")
app.config.update(
    REDIS_URL=sys.argv[1],
    REDIS_GUARD_HEALTH_CHECK_INTERVAL=0.1,
    REDIS_GUARD_OPEN_SECONDS=0.2,
    REDIS_GUARD_FAILURE_THRESHOLD=1,
    REDIS_GUARD_ALERT_DELIVERY=told.append,
)
guard = RedisGuard(app)
app.add_url_rule("/", "index", lambda: str(guard.client.ping()))
client = app.test_client()

before = resource.getrlimit(resource.RLIMIT_AS)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
threading.stack_size(1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), before[1]))
starved = [client.get("/").status_code for _ in range(3)]
places = app.extensions["redis_guard"].places
try:
    places.take(Place("somebody", 1, 60, "chat"))
except RedisUnavailable as error:
    starved.append(error.reason)
print("kill", flush=True)
sys.stdin.readline()
starved.append(client.get("/").status_code)
resource.setrlimit(resource.RLIMIT_AS, before)
threading.stack_size(0)
print("start", flush=True)
sys.stdin.readline()
# A request starts the check, once an interval has passed; that closes the breaker without another.
monitor = app.extensions["redis_guard"].monitor
eventually(lambda: client.get("/") and monitor.running, 10)
eventually(lambda: app.extensions["redis_guard"].breaker.state.value == "closed", 10)
eventually(lambda: "recovered" in [alert.kind for alert in told], 10)
def taken():
    try:
        return places.take(Place("somebody", 1, 60, "chat")) is None
    except RedisUnavailable:  # no thread is tried for a second
        return False
eventually(taken, 5)  # the place was given back
print(json.dumps([starved, [alert.kind for alert in told]]))
"""


def test_what_needs_a_thread_begins_once_there_is_one(own_server: RedisServer) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, own_server.url],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "kill\n", process.stderr.read()
        own_server.kill()
        print(file=process.stdin, flush=True)
        assert process.stdout.readline() == "start\n", process.stderr.read()
        own_server.start()
        print(file=process.stdin, flush=True)
        output, log = process.communicate(timeout=30)
    assert process.returncode == 0, log
    starved, told = json.loads(output)
    # A place that nothing would renew is refused: its lease would end while it is held.
    assert starved == [200, 200, 200, "limit-failed", 503]
    assert set(told) == {"connection-failed", "breaker-open", "recovered"}
    assert log.count("The background check of Redis cannot start yet") == 1
