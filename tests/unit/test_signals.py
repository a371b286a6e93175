"""Signals reach every receiver of one app, whatever another receiver does."""

from __future__ import annotations

from typing import Any

import pytest
from blinker import Signal
from flask import Flask

import flask_redis_guard
from flask_redis_guard import signals

PUBLIC = (
    "circuit_state_changed",
    "redis_failure",
    "redis_recovered",
    "failure_rate_high",
    "downtime_extended",
    "rate_limit_exceeded",
    "request_refused",
)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_signals_have_a_name_and_a_docstring(name: str) -> None:
    signal = getattr(flask_redis_guard, name)
    assert isinstance(signal, Signal)
    assert signal.name == name.replace("_", "-")  # type: ignore[attr-defined]
    assert ":param" in str(signal.__doc__)


def test_receivers_get_the_app_and_the_event_and_other_apps_nothing() -> None:
    signal, one, two = Signal(), Flask("one"), Flask("two")
    seen: list[tuple[Any, Any]] = []
    signal.connect(lambda app, **event: seen.append((app, event)), one, weak=False)
    signals.send(signal, two, number=1)
    signals.send(signal, one, number=2)
    assert seen == [(one, {"number": 2})]


def test_receiver_that_raises_is_logged_and_disturbs_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    signal, app = signals._signals.signal("test-raising"), Flask("one")
    seen: list[int] = []

    def bad(_: Any) -> None:
        raise RuntimeError("boom")

    signal.connect(bad)
    signal.connect(lambda _: seen.append(1), weak=False)
    signal.connect(lambda _: seen.append(2), weak=False)
    signals.send(signal, app)
    assert sorted(seen) == [1, 2]
    assert "A receiver of the signal 'test-raising' failed" in caplog.text


def test_async_receiver_is_logged_as_failed(caplog: pytest.LogCaptureFixture) -> None:
    async def receive(app: object, **event: object) -> None:
        raise AssertionError("nobody awaits this")

    app = Flask("async")
    with signals.redis_recovered.connected_to(receive, app):
        signals.send(signals.redis_recovered, app, downtime=1.0)
    assert "A receiver of the signal 'redis-recovered' failed" in caplog.text
    assert "may not be async" in caplog.text


def test_receiver_that_is_interrupted_lets_the_others_know_first() -> None:
    signal, app = Signal(), Flask("one")
    seen: list[int] = []

    def killed(_: Any) -> None:
        raise KeyboardInterrupt

    receivers = [lambda _, n=n: seen.append(n) for n in range(3)]
    for receiver in (receivers[0], killed, *receivers[1:]):
        signal.connect(receiver)
    with pytest.raises(KeyboardInterrupt):
        signals.send(signal, app)
    assert sorted(seen) == [0, 1, 2]


def test_muted_signal_is_silent() -> None:
    signal, app = Signal(), Flask("one")
    seen: list[int] = []
    signal.connect(lambda _: seen.append(1), weak=False)
    with signal.muted():
        signals.send(signal, app)
    assert seen == []
