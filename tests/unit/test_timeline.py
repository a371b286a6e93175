"""The ring of the last hour."""

from __future__ import annotations

from flask_redis_guard.core.breaker import CircuitState
from flask_redis_guard.core.timeline import SLOT_SECONDS, SLOTS, Timeline


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_slot_shows_the_worst_state_and_the_next_one_the_last() -> None:
    clock = Clock()
    timeline = Timeline(clock)
    timeline.changed(CircuitState.OPEN)
    timeline.changed(CircuitState.HALF_OPEN)
    timeline.changed(CircuitState.CLOSED)
    clock.now += SLOT_SECONDS
    assert [slot.state for slot in timeline.slots()] == [CircuitState.OPEN, CircuitState.CLOSED]


def test_state_lasts_over_slots_in_which_nothing_happens() -> None:
    clock = Clock()
    timeline = Timeline(clock)
    timeline.changed(CircuitState.OPEN)
    clock.now += 3 * SLOT_SECONDS
    assert [slot.state for slot in timeline.slots()] == [CircuitState.OPEN] * 4


def test_counts_stand_where_they_happened() -> None:
    clock = Clock()
    timeline = Timeline(clock)
    timeline.refused()
    timeline.checked(3.0)
    timeline.checked(1.0)
    clock.now += SLOT_SECONDS
    timeline.limited()
    timeline.limited()
    timeline.checked(None)
    first, second = timeline.slots()
    assert (first.refused, first.limited, first.latency_ms, first.failed_checks) == (1, 0, 3.0, 0)
    assert (second.refused, second.limited, second.latency_ms) == (0, 2, None)
    assert second.failed_checks == 1


def test_memory_is_bounded_and_the_oldest_go() -> None:
    clock = Clock()
    timeline = Timeline(clock)
    timeline.refused()
    clock.now += (SLOTS - 1) * SLOT_SECONDS
    assert len(timeline.slots()) == SLOTS
    assert timeline.slots()[0].refused == 1
    clock.now += SLOT_SECONDS
    assert len(timeline.slots()) == SLOTS
    assert not any(slot.refused for slot in timeline.slots())
    clock.now += 1e6 * SLOT_SECONDS  # a machine that slept for months
    assert len(timeline.slots()) == SLOTS


def test_clock_set_back_changes_nothing() -> None:
    clock = Clock()
    timeline = Timeline(clock)
    clock.now -= 100
    timeline.refused()
    assert [slot.refused for slot in timeline.slots()] == [1]
