"""Alerts: once for each kind and outage, whatever becomes of the webhook."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from flask import Flask

from flask_redis_guard import (
    CircuitState,
    ConfigurationError,
    RedisGuard,
    RedisUnavailable,
)
from flask_redis_guard.events import Bus, RedisFailed, RedisRecovered, Transition
from flask_redis_guard.web.alerts.delivery import MOST_WAITING, DeliveryQueue
from flask_redis_guard.web.alerts.story import BURST, Alert, Alerts
from tests.support import GunicornApp, RedisServer, eventually
from tests.support.ports import PortLease

KINDS = {"connection-failed", "breaker-open", "failure-rate-high", "downtime-extended", "recovered"}


class Webhook:
    """An HTTP server that takes alerts, and can be told to misbehave."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []
        self.tries = 0
        self.answer = 200
        self.hang = threading.Event()
        self.release = threading.Event()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                alert = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                hook.tries += 1
                if hook.hang.is_set():
                    hook.release.wait(30)
                    return
                if hook.answer == 200:
                    hook.taken.append(alert)
                self.send_response(hook.answer)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.lease = PortLease()
        self.server = ThreadingHTTPServer(("127.0.0.1", self.lease.port), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.lease.port}/"

    def counts(self) -> Counter[tuple[int, str]]:
        return Counter((alert["process"], alert["kind"]) for alert in list(self.taken))

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
        self.lease.release()


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    hook = Webhook()
    yield hook
    hook.close()


APP = """
import json, os, urllib.request
from flask import Flask
from flask_redis_guard import RedisGuard

def deliver(alert):
    body = json.dumps(alert.as_dict()).encode()
    # No timeout on purpose: the guard has to live with such a deliverer.
    urllib.request.urlopen(urllib.request.Request(os.environ["WEBHOOK"], data=body)).close()

app = Flask("shop")
app.config.update(
    REDIS_GUARD_ALERT_DELIVERY=deliver,
    REDIS_GUARD_ALERT_TIMEOUT=3.0,
    REDIS_GUARD_HEALTH_CHECK_INTERVAL=0.4,
    REDIS_GUARD_FAILURE_THRESHOLD=3,
    REDIS_GUARD_FAILURE_ALERT_COUNT=3,
    REDIS_GUARD_DOWNTIME_ALERT_SECONDS=2,
    REDIS_GUARD_OPEN_SECONDS=0.5,
)
guard = RedisGuard(app)
guard.start(app)

@app.get("/")
def index():
    return str(guard.client.incr("n"))
"""


def test_eight_workers_tell_of_each_outage_once(own_server: RedisServer, webhook: Webhook) -> None:
    env = {"REDIS_URL": own_server.url, "WEBHOOK": webhook.url}

    def told() -> Counter[str]:
        return Counter(alert["kind"] for alert in list(webhook.taken))

    with GunicornApp(APP, worker_class="gthread", workers=8, threads=2, env=env) as app:
        for _ in range(40):  # all of them have something to do
            assert app.get().status_code == 200
        for outage in (1, 2):
            own_server.kill()
            for _ in range(40):
                assert app.get().status_code == 503
            eventually(lambda n=outage: told()["downtime-extended"] == n, 20, "it lasts")  # type: ignore[misc]
            own_server.start()
            eventually(lambda n=outage: told()["recovered"] == n, 20, "it is over")  # type: ignore[misc]
            eventually(lambda: app.get().status_code == 200, 5)
        time.sleep(1)  # in which another worker would tell it again
        assert set(told()) - {"failure-rate-high"} == KINDS - {"failure-rate-high"}
        for kind, times in told().items():
            assert times <= 2 if kind == "failure-rate-high" else times == 2, kind
        # Opening and recovery of an outage share an incident, which no other outage has.
        for outage in (1, 2):
            alerts = [alert for alert in webhook.taken if alert["kind"] == "recovered"]
            incident = alerts[outage - 1]["incident"]
            kinds = {alert["kind"] for alert in webhook.taken if alert["incident"] == incident}
            assert kinds >= KINDS - {"failure-rate-high"}
        assert len({alert["incident"] for alert in webhook.taken}) == 2
        texts = {alert["kind"]: alert["text"] for alert in webhook.taken}
        assert "answered with 503" in texts["breaker-open"]
        assert "Restore Redis" in texts["breaker-open"]
        everything = json.dumps(webhook.taken)
        assert str(own_server.port) not in everything


def test_webhook_that_refuses_and_hangs_delays_nothing_and_loses_nothing(
    own_server: RedisServer, webhook: Webhook
) -> None:
    env = {"REDIS_URL": own_server.url, "WEBHOOK": webhook.url}
    with GunicornApp(APP, worker_class="gevent", env=env) as app:
        webhook.hang.set()
        own_server.kill()
        slowest = 0.0
        eventually(lambda: app.get().status_code == 503 and webhook.tries, 10)
        for _ in range(100):
            response = app.get()
            assert response.status_code == 503
            slowest = max(slowest, response.elapsed.total_seconds())
        webhook.answer = 500
        webhook.hang.clear()
        webhook.release.set()
        tries = webhook.tries
        for _ in range(100):
            slowest = max(slowest, app.get().elapsed.total_seconds())
        eventually(lambda: webhook.tries > tries, 10, "a try that is refused")
        assert webhook.taken == []
        # A request that waited for the webhook would have waited for the timeout of its try.
        assert slowest < 2
        eventually(lambda: "has been down for more than" in app.log(), 10, "a long outage")
        webhook.answer = 200
        own_server.start()
        eventually(lambda: len(webhook.taken) == len(KINDS), 25, "everything delivered in the end")
        assert [alert["kind"] for alert in webhook.taken][-1] == "recovered"
        assert set(webhook.counts().values()) == {1}
        log = app.log()
        assert "Delivering the alert connection-failed failed" in log
        assert webhook.url not in log


# -- once, and not too often -------------------------------------------------------------------


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Outages:
    """Events that are emitted by hand, and what was delivered."""

    def __init__(self) -> None:
        self.bus = Bus()
        self.clock = Clock()
        self.got: list[Alert] = []
        self.alerts = Alerts(
            "alerts-test", self.bus, self.got.append, cooldown=300, timeout=5, clock=self.clock
        )

    def fail(self) -> None:
        self.bus.emit(RedisFailed(RedisUnavailable("GET", "connection"), 1))

    def move(self, previous: CircuitState, current: CircuitState) -> None:
        self.bus.emit(Transition(previous, current, "consecutive-failures", 5, 31.2))

    def open(self) -> None:
        self.fail()
        self.move(CircuitState.CLOSED, CircuitState.OPEN)

    def recover(self) -> None:
        self.move(CircuitState.OPEN, CircuitState.CLOSED)
        self.bus.emit(RedisRecovered(12.3))

    def kinds(self, count: int) -> list[str]:
        """What was delivered, once there is as much; the last one proves that no more came."""
        eventually(lambda: len(self.got) >= count, 5, f"{count} alerts")
        return [alert.kind for alert in self.got]


def test_an_outage_is_told_once_however_often_it_fails() -> None:
    outages = Outages()
    outages.open()
    for _ in range(50):
        outages.clock.now += 100  # far beyond the cool-down
        outages.fail()
        outages.move(CircuitState.OPEN, CircuitState.HALF_OPEN)
        outages.move(CircuitState.HALF_OPEN, CircuitState.OPEN)
    outages.recover()
    assert outages.kinds(3) == ["connection-failed", "breaker-open", "recovered"]


def test_an_incident_has_one_id_from_opening_to_recovery() -> None:
    outages = Outages()
    for _ in range(2):
        outages.open()
        outages.recover()
    outages.kinds(6)
    incidents = [alert.incident for alert in outages.got]
    assert len(set(incidents[:3])) == len(set(incidents[3:])) == 1
    assert all(incidents)
    assert incidents[0] != incidents[3]
    assert len({alert.id for alert in outages.got}) == 6


def test_a_blip_and_a_later_outage_are_two_incidents() -> None:
    outages = Outages()
    outages.fail()
    outages.clock.now += 299
    outages.open()  # soon after: more of the same
    outages.clock.now += 5000
    outages.recover()
    outages.fail()
    outages.clock.now += 300
    outages.open()
    first, second, third, blip, *last = [outages.got[i].incident for i in _upto(outages, 6)]
    assert first == second == third
    assert last == [last[0]] * 2
    assert len({first, blip, last[0]}) == 3


def _upto(outages: Outages, count: int) -> range:
    outages.kinds(count)
    return range(count)


def test_alert_is_a_cloudevent() -> None:
    outages = Outages()
    outages.open()
    outages.kinds(2)
    alert = outages.got[1]
    event = json.loads(json.dumps(alert.as_cloudevent()))
    # The required attributes of CloudEvents 1.0, and the rules that it gives for their values.
    assert event["specversion"] == "1.0"
    assert event["id"] == alert.id
    assert re.fullmatch(r"//[^/]+/alerts-test/\d+", event["source"])
    assert event["type"] == "flask-redis-guard.breaker-open"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"])
    moment = datetime.fromisoformat(event["time"].replace("Z", "+00:00"))
    assert abs(moment.timestamp() - alert.at) < 0.01
    assert all(re.fullmatch(r"[a-z0-9]{1,20}", name) for name in event)
    assert event["subject"] == alert.incident
    assert event["data"] == alert.as_dict()


def test_failures_that_open_nothing_wait_for_the_cooldown() -> None:
    outages = Outages()
    outages.fail()
    for _ in range(10):
        outages.clock.now += 299
        outages.fail()
    outages.clock.now += 300
    outages.fail()
    assert outages.kinds(2) == ["connection-failed", "connection-failed"]


def test_redis_that_comes_and_goes_is_not_told_without_end() -> None:
    outages = Outages()
    for _ in range(20):
        outages.open()
        outages.clock.now += 1
        outages.recover()
        outages.clock.now += 1
    # The end of what was held back is held back as well.
    assert outages.kinds(3 * BURST) == ["connection-failed", "breaker-open", "recovered"] * BURST
    # But an outage that lasts is told when there is room again.
    outages.open()
    outages.clock.now += 300
    outages.fail()
    outages.recover()
    last = outages.kinds(3 * BURST + 3)[3 * BURST :]
    assert sorted(last[:2]) == ["breaker-open", "connection-failed"]
    assert last[2] == "recovered"


def test_another_apps_outage_is_not_told() -> None:
    outages, other = Outages(), Outages()
    other.open()
    outages.open()
    assert outages.kinds(2) == ["connection-failed", "breaker-open"]
    assert {alert.app for alert in outages.got} == {"alerts-test"}
    assert other.kinds(2) == ["connection-failed", "breaker-open"]


def make_alert(number: int) -> Alert:
    return Alert("recovered", "info", "Redis is back", str(number), "app", "host", 1, 0.0)


def test_false_means_not_delivered() -> None:
    tries: list[str] = []

    def deliver(alert: Alert) -> bool:
        tries.append(alert.text)
        return len(tries) > 1

    queue = DeliveryQueue(deliver, 5)
    queue.put(make_alert(1))
    queue.put(make_alert(2))
    eventually(lambda: len(tries) == 3, 5)
    assert tries == ["1", "1", "2"]


def test_async_deliverer_is_refused_or_known_to_have_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def deliver(alert: Alert) -> None:
        raise AssertionError("nobody awaits this")

    app = Flask("async")
    app.config.update(REDIS_URL="redis://localhost", REDIS_GUARD_ALERT_DELIVERY=deliver)
    with pytest.raises(ConfigurationError, match="not async"):
        RedisGuard(app)
    queue = DeliveryQueue(lambda alert: deliver(alert), 5)
    queue.put(make_alert(1))
    eventually(lambda: "Delivering the alert recovered failed: TypeError" in caplog.text, 5)
    assert len(queue) == 1


def test_late_delivery_is_not_repeated() -> None:
    release, done = threading.Event(), threading.Event()
    tries: list[str] = []

    def deliver(alert: Alert) -> None:
        tries.append(alert.text)
        if alert.text == "1":
            release.wait(10)
        else:
            done.set()

    queue = DeliveryQueue(deliver, 0.05)
    queue.put(make_alert(1))
    queue.put(make_alert(2))
    eventually(lambda: queue.hanging == 1, 5)
    release.set()
    assert done.wait(5)
    assert tries == ["1", "2"]


def test_memory_is_bounded_when_nothing_is_ever_delivered() -> None:
    release = threading.Event()
    tries: list[str] = []

    def deliver(alert: Alert) -> None:
        tries.append(alert.text)
        release.wait(10)

    queue = DeliveryQueue(deliver, 60)
    queue.put(make_alert(0))
    eventually(lambda: tries == ["0"], 5)
    started = time.monotonic()
    for number in range(1, 3 * MOST_WAITING):
        queue.put(make_alert(number))
    assert time.monotonic() - started < 5  # nobody waited for the deliverer
    assert len(queue) == MOST_WAITING
    release.set()
    eventually(lambda: tries[-1] == str(3 * MOST_WAITING - 1), 10, "the newest are kept")
