"""An app that nobody calls still tells of an outage, and recovers."""

from __future__ import annotations

from flask import Flask

from flask_redis_guard import RedisGuard, downtime_extended, redis_recovered
from tests.support import GunicornApp, RedisServer, eventually

APP = """
import logging
from flask import Flask
from flask_redis_guard import RedisGuard, signals

logging.basicConfig(level=logging.INFO)
app = Flask("idle")
app.config.update(
    REDIS_GUARD_HEALTH_CHECK_INTERVAL=0.2,
    REDIS_GUARD_FAILURE_THRESHOLD=2,
    REDIS_GUARD_OPEN_SECONDS=0.5,
    REDIS_GUARD_DOWNTIME_ALERT_SECONDS=1.5,
)
guard = RedisGuard(app)

def told(name):
    def receiver(sender, **event):
        print("signal:", name, round(event.get("downtime", 0), 1), flush=True)
    receivers.append(receiver)
    return receiver

receivers = []
signals.downtime_extended.connect(told("downtime_extended"), app)
signals.redis_recovered.connect(told("redis_recovered"), app)

@app.get("/")
def index():
    return "no Redis needed"
"""


def test_after_one_request_it_tells_of_a_long_outage_and_recovers(own_server: RedisServer) -> None:
    with GunicornApp(APP, env={"REDIS_URL": own_server.url}) as app:  # asks once
        eventually(lambda: own_server.calls("set") > 0, 10, "the first check")
        own_server.kill()
        eventually(lambda: "signal: downtime_extended" in app.log(), 15, "the long outage is told")
        own_server.start()
        eventually(lambda: "signal: redis_recovered" in app.log(), 15, "the recovery is told")
        log = app.log()
        assert log.count("signal: downtime_extended") == 1
        assert log.count("signal: redis_recovered") == 1
        assert "Redis has been down for more than" in log
        assert "Circuit breaker closing after successful operations" in log


def test_after_start_it_tells_without_any_request(own_server: RedisServer) -> None:
    app = Flask("started")
    app.config.update(
        REDIS_URL=own_server.url,
        REDIS_GUARD_HEALTH_CHECK_INTERVAL=0.1,
        REDIS_GUARD_FAILURE_THRESHOLD=2,
        REDIS_GUARD_OPEN_SECONDS=0.2,
        REDIS_GUARD_DOWNTIME_ALERT_SECONDS=0.5,
    )
    told: list[tuple[str, float]] = []

    def extended(_: Flask, *, downtime: float) -> None:
        told.append(("extended", downtime))

    def recovered(_: Flask, *, downtime: float) -> None:
        told.append(("recovered", downtime))

    downtime_extended.connect(extended, app)
    redis_recovered.connect(recovered, app)
    guard = RedisGuard(app)
    guard.start(app)
    try:
        own_server.kill()
        eventually(lambda: told, 10, "the long outage is told")
        own_server.start()
        eventually(lambda: len(told) == 2, 10, "the recovery is told")
    finally:
        app.extensions["redis_guard"].monitor.stop()
    assert [kind for kind, _ in told] == ["extended", "recovered"]
    assert 0.5 <= told[0][1] <= told[1][1]
