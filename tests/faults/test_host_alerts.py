"""An outage is told once for the host, whatever becomes of the worker that tells it."""

from __future__ import annotations

import signal
import time
from collections import Counter
from typing import Any

import pytest

from tests.support import RedisServer, eventually
from tests.support.hosts import HostSetup

SETTINGS: dict[str, Any] = {
    "REDIS_GUARD_DOWNTIME_ALERT_SECONDS": 1,
    "REDIS_GUARD_ALERT_TIMEOUT": 20,
}


def kinds(host: HostSetup) -> Counter[str]:
    return Counter(alert["kind"] for alert in host.alerts())


def begin(host: HostSetup, server: RedisServer) -> None:
    for worker in host.workers:
        assert worker.ask() == "served"
    server.kill()
    for _ in range(5):
        for worker in host.workers:
            worker.send("ask()")
        for worker in host.workers:
            assert worker.receive() in ("connection", "circuit-open")


def test_outage_that_all_meet_at_once_is_told_once(own_server: RedisServer) -> None:
    with HostSetup(own_server.url, 4, **SETTINGS) as host:
        for outage in (1, 2):
            begin(host, own_server)
            eventually(lambda n=outage: kinds(host)["downtime-extended"] == n, 5)  # type: ignore[misc]
            own_server.start()
            eventually(lambda n=outage: kinds(host)["recovered"] == n, 5)  # type: ignore[misc]
            eventually(lambda: host.states() == ["closed"] * 4, 5)
        time.sleep(1)
        found = kinds(host)
        assert found.pop("failure-rate-high", 2) <= 2
        assert set(found.values()) == {2}
        assert set(found) == {"connection-failed", "breaker-open", "downtime-extended", "recovered"}
        assert len({alert["incident"] for alert in host.alerts()}) == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_teller_that_is_killed_or_stopped_is_replaced(own_server: RedisServer, number: int) -> None:
    with HostSetup(own_server.url, 3, **SETTINGS) as host:
        host.hold_alerts(True)
        begin(host, own_server)
        eventually(lambda: (host.directory / "alerts.begun").exists(), 5, "one has begun to tell")
        (teller,) = set(host.delivering())
        next(worker for worker in host.workers if worker.pid == teller).signal(number)
        rest = [worker for worker in host.workers if worker.pid != teller]
        host.hold_alerts(False)
        eventually(lambda: kinds(host)["downtime-extended"] == 1, 10, "another one tells")
        own_server.start()
        eventually(lambda: {worker.ask() for worker in rest} == {"served"}, 6)
        eventually(lambda: kinds(host)["recovered"] == 1, 5)
        if number == signal.SIGSTOP:
            next(worker for worker in host.workers if worker.pid == teller).signal(signal.SIGCONT)
        time.sleep(2)
        found = kinds(host)
        assert set(found) >= {"connection-failed", "breaker-open", "downtime-extended", "recovered"}
        # What was on its way when the teller was stopped may come twice.
        assert sum(found.values()) <= len(found) + (number == signal.SIGSTOP)


def test_what_only_a_dead_worker_had_noticed_is_told(own_server: RedisServer) -> None:
    with HostSetup(own_server.url, 2, **SETTINGS) as host:
        for worker in host.workers:
            assert worker.ask() == "served"
        host.hold_alerts(True)
        own_server.kill()
        assert host[1].ask() == "connection"
        eventually(lambda: (host.directory / "alerts.begun").exists(), 5)
        host[1].signal(signal.SIGKILL)
        own_server.start()
        host.hold_alerts(False)
        eventually(lambda: kinds(host)["connection-failed"] == 1, 5, "the other one tells")
