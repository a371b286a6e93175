"""How the time of an operation is counted."""

from __future__ import annotations

import math
from typing import Any

import pytest

from flask_redis_guard.client.gate import Gate
from flask_redis_guard.client.operation import Operation
from flask_redis_guard.core.breaker import CircuitBreaker, Permit


def make(timeout: float) -> Operation:
    return Operation(Gate(CircuitBreaker(), timeout), "GET", timeout, Permit(0))


@pytest.mark.parametrize("timeout", [0.3, 0.5, 0.7, 1.0, 3.3])
def test_time_is_used_up_at_the_last_bit(timeout: float) -> None:
    operation = make(timeout)
    operation.waited = math.nextafter(timeout, 0)
    asked: list[float] = []
    assert not operation.wait(lambda seconds: asked.append(seconds))
    assert asked == [0]
    assert operation.remaining() <= 0


def test_a_part_that_ends_late_counts_as_long_as_it_was_to_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("flask_redis_guard.client.operation.monotonic", lambda: now)
    operation = make(0.8)

    def stopped(seconds: float) -> None:
        nonlocal now
        now += seconds + 10  # the process was stopped meanwhile

    assert not operation.wait(stopped)
    assert operation.waited == pytest.approx(0.8)
    assert operation.away == pytest.approx(80)
    assert operation.was_away


def test_who_is_woken_late_looks_once_more() -> None:
    operation = make(0.01)
    looked: list[float] = []

    def late(seconds: float) -> Any:
        looked.append(seconds)
        return seconds == 0

    operation.waited = 0.01
    assert operation.wait(late)
    assert looked == [0]


def test_a_server_that_drips_uses_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("flask_redis_guard.client.operation.monotonic", lambda: now)
    operation = make(0.5)

    def a_byte_later(seconds: float) -> bool:
        nonlocal now
        now += 0.03
        return True

    drips = 0
    while operation.remaining() > 0:
        assert operation.wait(a_byte_later)
        drips += 1
    assert drips == 17
    assert not operation.was_away


def test_an_operation_that_is_under_way_is_not_entered_again() -> None:
    operation = make(1)
    with operation, pytest.raises(RuntimeError, match="entered once"):
        operation.__enter__()
    with operation:  # but what has left it may come back
        assert operation.active
