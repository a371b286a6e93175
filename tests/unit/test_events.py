"""The bus: everybody who subscribed hears of an event, the cause before what follows from it."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask

from flask_redis_guard import RedisGuard, RedisUnavailable, runtime, signals
from flask_redis_guard.events import (
    Bus,
    CallFinished,
    CallRefused,
    DowntimeExtended,
    RedisRecovered,
    SessionFailed,
    SessionUnreadable,
)
from flask_redis_guard.testing import outage

EVENT = SessionFailed("load")


def test_subscribers_of_a_kind_hear_its_events_in_their_order_and_others_nothing() -> None:
    bus, seen = Bus(), list[Any]()
    bus.subscribe(SessionFailed, lambda event: seen.append(("first", event)))
    bus.subscribe(SessionUnreadable, lambda event: seen.append(("other", event)))
    bus.subscribe(SessionFailed, lambda event: seen.append(("second", event)))
    bus.emit(EVENT)
    assert seen == [("first", EVENT), ("second", EVENT)]


def test_receiver_is_called_once_however_often_it_subscribes_until_it_unsubscribes() -> None:
    bus, seen = Bus(), list[Any]()
    bus.subscribe(SessionFailed, seen.append)
    bus.subscribe(SessionFailed, seen.append)
    bus.emit(EVENT)
    bus.unsubscribe(SessionFailed, seen.append)
    bus.unsubscribe(SessionFailed, seen.append)
    bus.emit(EVENT)
    assert seen == [EVENT]


def test_what_follows_is_told_after_everybody_knows_the_cause() -> None:
    bus, seen = Bus(), list[Any]()

    def follow(event: RedisRecovered) -> DowntimeExtended:
        return DowntimeExtended(event.downtime)

    bus.subscribe(RedisRecovered, follow)
    bus.subscribe(RedisRecovered, seen.append)
    bus.subscribe(DowntimeExtended, seen.append)
    bus.emit(RedisRecovered(3.0))
    assert seen == [RedisRecovered(3.0), DowntimeExtended(3.0)]


def test_receiver_that_raises_or_is_async_is_logged_and_disturbs_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus, seen = Bus(), list[Any]()

    def bad(_: SessionFailed) -> None:
        raise RuntimeError("boom")

    async def never_awaited(_: SessionFailed) -> None:
        raise AssertionError

    bus.subscribe(SessionFailed, bad)
    bus.subscribe(SessionFailed, never_awaited)
    bus.subscribe(SessionFailed, seen.append)
    bus.emit(EVENT)
    assert seen == [EVENT]
    assert caplog.text.count("A receiver of SessionFailed failed") == 2


def test_interruption_comes_out_when_all_are_told_of_cause_and_effect() -> None:
    bus, seen = Bus(), list[Any]()

    def interrupted(_: RedisRecovered) -> None:
        raise KeyboardInterrupt

    bus.subscribe(RedisRecovered, interrupted)
    bus.subscribe(RedisRecovered, lambda event: DowntimeExtended(event.downtime))
    bus.subscribe(DowntimeExtended, seen.append)
    with pytest.raises(KeyboardInterrupt):
        bus.emit(RedisRecovered(3.0))
    assert seen == [DowntimeExtended(3.0)]


def test_hot_events_are_made_only_while_somebody_hears_them() -> None:
    bus = Bus()
    flags = ("begins", "refusals", "calls", "decisions")
    assert not any(getattr(bus, flag) for flag in flags)
    bus.subscribe(CallFinished, print)
    bus.subscribe(CallRefused, print)
    assert (bus.calls, bus.refusals, bus.begins, bus.decisions) == (True, True, False, False)
    bus.unsubscribe(CallFinished, print)
    assert (bus.calls, bus.refusals) == (False, True)


def test_failure_is_told_before_the_transition_that_it_causes() -> None:
    app = Flask("order")
    app.config.update(
        REDIS_URL="redis://localhost:1",
        REDIS_GUARD_HEALTH_CHECK_INTERVAL=0,
        REDIS_GUARD_FAILURE_THRESHOLD=3,
        REDIS_GUARD_FAILURE_ALERT_COUNT=3,
    )
    guard = RedisGuard(app)
    told: list[str] = []

    def failed(_: Flask, *, error: RedisUnavailable, failure_count: int) -> None:
        told.append(f"failure {failure_count}, retry in {error.retry_after > 1}")

    def changed(_: Flask, **event: Any) -> None:
        told.append(f"{event['previous']} to {event['current']}")

    def many(_: Flask, **event: Any) -> None:
        told.append(f"{event['failures']} failures")

    with (
        signals.redis_failure.connected_to(failed, app),
        signals.circuit_state_changed.connected_to(changed, app),
        signals.failure_rate_high.connected_to(many, app),
        outage(app),
    ):
        for _ in range(3):
            with pytest.raises(RedisUnavailable):
                guard.client_for(app).get("key")
        assert told == [
            "failure 1, retry in False",
            "failure 2, retry in False",
            "failure 3, retry in True",
            "3 failures",
            "closed to open",
        ]


def test_a_signal_is_sent_once_for_each_event() -> None:
    app = Flask("once")
    app.config.update(REDIS_URL="redis://localhost:1")
    RedisGuard(app)
    got: list[str] = []

    def receive(_: Flask, *, reason: str) -> None:
        got.append(reason)

    with signals.session_unreadable.connected_to(receive, app):
        runtime.of(app).bus.emit(SessionUnreadable("format"))
    assert got == ["format"]
