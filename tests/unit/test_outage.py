"""The story of an outage is told once, whatever way it takes."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import pytest
from flask import Flask

from flask_redis_guard import signals
from flask_redis_guard.core.breaker import CircuitBreaker, CircuitState, Outcome, Permit
from flask_redis_guard.errors import RedisUnavailable
from flask_redis_guard.events import Bus, CallFinished, CallRefused, RedisFailed, Tick
from flask_redis_guard.observe.outage import OutageWatch
from tests.unit.clock import FakeClock


class Story:
    """A breaker and its watch on one clock, and what was sent."""

    def __init__(self, threshold: int = 3) -> None:
        self.clock = FakeClock()
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.bus = Bus()
        self.watch = OutageWatch(
            self.bus,
            alert_count=4,
            window_seconds=10,
            downtime_seconds=60,
            failing=lambda: self.breaker.failure_count > 0,
            clock=self.clock,
        )
        app = Flask("story")
        signals.follow(self.bus, app)
        self._receivers = [partial(self._send, signal) for signal in signals._signals.values()]
        for signal, receiver in zip(signals._signals.values(), self._receivers, strict=True):
            signal.connect(receiver, app)
        self.breaker = CircuitBreaker(
            failure_threshold=threshold,
            failure_rate=1.0,
            open_seconds=30,
            success_threshold=1,
            clock=self.clock,
            random=lambda: 0.0,
            on_transition=self.bus.emit,
        )

    def _send(self, signal: Any, _: Flask, **event: Any) -> None:
        self.sent.append((signal.name, event))

    def call(self, outcome: Outcome) -> None:
        """As the gate does."""
        permit = self.breaker.try_acquire()
        assert isinstance(permit, Permit)
        error = RedisUnavailable("GET", "connection")
        failed = outcome is Outcome.FAILURE
        cause = (lambda failures, wait: RedisFailed(error, failures)) if failed else None
        self.breaker.settle(permit, outcome, cause)
        self.bus.emit(CallFinished("GET", outcome, 0.01))

    def fail(self, times: int) -> None:
        for _ in range(times):
            self.call(Outcome.FAILURE)

    def names(self, without: str = "redis-failure") -> list[str]:
        return [name for name, _ in self.sent if name != without]


@pytest.fixture(autouse=True)
def _all_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flask_redis_guard")


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_whole_outage_in_the_lines_that_operators_search_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    story = Story(threshold=5)
    story.fail(5)
    story.clock.advance(30)
    story.fail(1)
    story.clock.advance(30)
    story.call(Outcome.SUCCESS)
    assert lines(caplog) == [
        ("ERROR", "Redis connection failed (connection in GET)"),
        (
            "ERROR",
            "Circuit breaker opening after 5 failures (consecutive-failures; the last: connection "
            "in GET): what needs Redis is refused with 503 until Redis answers again",
        ),
        ("INFO", "Circuit breaker half-open, probing Redis"),
        (
            "WARNING",
            "Circuit breaker reopening after failure in half-open state (connection in GET), down "
            "for 30.0 s",
        ),
        ("INFO", "Circuit breaker half-open, probing Redis"),
        (
            "WARNING",
            "Circuit breaker closing after successful operations: Redis serves again after 60.0 s",
        ),
    ]
    assert {record.name for record in caplog.records} == {"flask_redis_guard"}
    changes = ["circuit-state-changed"] * 5
    assert sorted(story.names()) == sorted(["failure-rate-high", *changes, "redis-recovered"])
    assert story.sent[-1] == ("redis-recovered", {"downtime": 60.0})


def test_each_failure_is_signalled_with_its_error() -> None:
    story = Story()
    story.fail(2)
    (name, event), second = story.sent
    assert name == second[0] == "redis-failure"
    assert (event["error"].reason, event["failure_count"]) == ("connection", 1)
    assert second[1]["failure_count"] == 2


def test_streak_that_never_opens_ends_with_a_success_and_no_recovery() -> None:
    story = Story()
    story.fail(2)
    story.call(Outcome.SUCCESS)
    assert not story.watch.failing
    assert story.names() == []


def test_success_elsewhere_does_not_end_what_goes_on_failing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    story = Story()
    story.fail(1)
    failing = []
    story.bus.emit(CallFinished("GET", Outcome.SUCCESS, 0.01))  # of another primary
    failing.append((story.watch.failing, "answers again" in caplog.text))
    story.call(Outcome.SUCCESS)
    failing.append((story.watch.failing, "answers again" in caplog.text))
    assert failing == [(True, False), (False, True)]


def test_flickering_logs_once_in_a_window(caplog: pytest.LogCaptureFixture) -> None:
    story = Story()
    for _ in range(9):
        story.fail(1)
        story.call(Outcome.SUCCESS)
        story.clock.advance(1)
    told = [
        ("ERROR", "Redis connection failed (connection in GET)"),
        ("WARNING", "Redis answers again after 0.0 s"),
    ]
    assert lines(caplog) == told
    story.clock.advance(2)
    story.fail(1)
    story.clock.advance(0.5)
    story.call(Outcome.SUCCESS)
    assert lines(caplog) == [*told, told[0], ("WARNING", "Redis answers again after 0.5 s")]


def test_reopening_is_told_once_and_then_with_growing_pauses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    story = Story()
    story.fail(3)
    for _ in range(480):  # four hours of an open time of 30 s
        story.clock.advance(30)
        story.fail(1)
    said = [record for record in caplog.records if "reopening" in record.getMessage()]
    began = said[0].getMessage()
    assert began.startswith("Circuit breaker reopening after failure in half-open state (")
    times = [line.getMessage().partition(" s, ")[2].partition(" times")[0] for line in said]
    assert times == ["", "2", "4", "8", "16", "32", "64", "120", "120"]
    # The next outage is told from the beginning.
    story.clock.advance(30)
    story.call(Outcome.SUCCESS)
    caplog.clear()
    story.fail(3)
    story.clock.advance(30)
    story.fail(1)
    assert "reopening" in caplog.text


def test_failure_rate_is_told_once_for_each_flickering_and_again_for_the_next() -> None:
    story = Story()
    for _ in range(3):
        for _ in range(8):
            story.fail(1)
            story.call(Outcome.SUCCESS)
            story.clock.advance(0.5)
        assert story.names().count("failure-rate-high") == 1
        assert ("failure-rate-high", {"failures": 4, "window_seconds": 10}) in story.sent
        story.sent.clear()
        story.clock.advance(3600)


def test_failure_rate_is_not_that_of_background_checks_of_an_open_breaker() -> None:
    story = Story()
    story.fail(3)
    for _ in range(20):
        story.clock.advance(1)
        story.bus.emit(RedisFailed(RedisUnavailable("PROBE", "connection"), 3))
    assert "failure-rate-high" not in story.names()


def test_failure_rate_needs_its_failures_within_the_window() -> None:
    story = Story(threshold=100)
    for _ in range(20):
        story.fail(1)
        story.clock.advance(4)
    assert "failure-rate-high" not in story.names()


def test_long_downtime_is_told_once_for_each_outage(caplog: pytest.LogCaptureFixture) -> None:
    story = Story()
    for _ in range(2):
        story.fail(3)
        story.clock.advance(29)
        story.bus.emit(Tick())
        assert "downtime-extended" not in story.names()
        story.clock.advance(31)
        story.bus.emit(Tick())
        story.bus.emit(Tick())
        assert story.names().count("downtime-extended") == 1
        assert "Redis has been down for more than 60 seconds" in caplog.text
        story.call(Outcome.SUCCESS)
        assert story.names().count("redis-recovered") == 1
        story.sent.clear()


def hears(story: Story) -> bool:
    return story.bus.refusals


def test_refused_calls_look_at_the_clock_only_where_nothing_else_does() -> None:
    story = Story()
    story.fail(3)
    assert hears(story) is True
    story.clock.advance(60)
    story.bus.emit(CallRefused("GET"))
    assert story.names().count("downtime-extended") == 1
    story.clock.advance(30)
    story.call(Outcome.SUCCESS)
    assert hears(story) is False
    story.fail(3)
    story.bus.emit(Tick())
    assert hears(story) is False


def test_operator_who_resets_has_not_seen_redis_recover() -> None:
    story = Story()
    story.fail(3)
    story.breaker.reset()
    assert "redis-recovered" not in story.names()
    story.clock.advance(5)
    story.fail(3)
    assert story.breaker.state is CircuitState.OPEN
    assert "redis-recovered" not in story.names()
    story.breaker.reset()
    story.clock.advance(5)
    story.call(Outcome.SUCCESS)
    assert story.sent[-1] == ("redis-recovered", {"downtime": 10.0})
    assert not story.watch.failing


def test_operator_modes_without_an_outage_recover_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    story = Story()
    story.breaker.force_open()
    story.breaker.reset()
    story.call(Outcome.SUCCESS)
    assert story.names() == ["circuit-state-changed"] * 2
    assert lines(caplog) == [
        ("WARNING", "Circuit breaker set to forced-open by an operator"),
        ("WARNING", "Circuit breaker set to closed by an operator"),
    ]


def test_success_of_an_earlier_call_does_not_end_an_open_outage() -> None:
    story = Story()
    story.fail(3)
    story.bus.emit(CallFinished("GET", Outcome.SUCCESS, 0.01))
    assert story.watch.failing


def test_killed_receiver_leaves_the_story_right() -> None:
    story = Story(threshold=1)
    kill = [False] * 5 + [True]

    def killed(_: Flask, **event: Any) -> None:
        if kill.pop():
            raise KeyboardInterrupt

    # The traceback holds it for longer than the test lasts.
    with signals.circuit_state_changed.connected_to(killed):
        with pytest.raises(KeyboardInterrupt):
            story.fail(1)
        story.clock.advance(30)
        story.call(Outcome.SUCCESS)
    assert story.names()[-1] == "redis-recovered"
