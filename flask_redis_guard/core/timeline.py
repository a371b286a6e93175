"""The last hour of one process in slots of a few seconds: a ring, so its memory is bounded."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from flask_redis_guard.core.breaker import CircuitState
from flask_redis_guard.core.process import ProcessLock

#: Seconds of one slot, and how many slots are kept: one hour.
SLOT_SECONDS = 10
SLOTS = 360

#: What a slot shows where the state changed within it: the one that hurt callers most.
_SEVERITY = {
    CircuitState.CLOSED: 0,
    CircuitState.DISABLED: 1,
    CircuitState.HALF_OPEN: 2,
    CircuitState.OPEN: 3,
    CircuitState.FORCED_OPEN: 4,
}


@dataclass(slots=True)
class Slot:
    """What happened in one slot."""

    #: The worst state within it.
    state: CircuitState
    #: The slowest answer to a background check, in milliseconds; ``None`` where none came.
    latency_ms: float | None = None
    #: Background checks that failed.
    failed_checks: int = 0
    #: Requests answered with 503.
    refused: int = 0
    #: Requests over a limit, answered with 429.
    limited: int = 0


class Timeline:
    """Count what happens, slot by slot.

    :param clock: monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = ProcessLock()
        self._state = CircuitState.CLOSED
        self._slots: deque[Slot] = deque([Slot(self._state)], maxlen=SLOTS)
        self._current = int(clock() // SLOT_SECONDS)

    def changed(self, state: CircuitState) -> None:
        """Take note of a transition of the breaker."""
        with self._lock:
            slot = self._slot()
            self._state = state
            if _SEVERITY[state] > _SEVERITY[slot.state]:
                slot.state = state

    def checked(self, latency_ms: float | None) -> None:
        """Take note of a background check.

        :param latency_ms: milliseconds to its answer; ``None`` if it failed.
        """
        with self._lock:
            slot = self._slot()
            if latency_ms is None:
                slot.failed_checks += 1
            else:
                slot.latency_ms = max(latency_ms, slot.latency_ms or 0.0)

    def refused(self) -> None:
        """Take note of a request answered with 503."""
        with self._lock:
            self._slot().refused += 1

    def limited(self) -> None:
        """Take note of a request answered with 429."""
        with self._lock:
            self._slot().limited += 1

    def slots(self) -> list[Slot]:
        """Return the slots, the oldest first; the last one is still going on."""
        with self._lock:
            self._slot()
            return list(self._slots)

    def _slot(self) -> Slot:
        """Return the slot of now, after filling up those in which nothing happened."""
        now = int(self._clock() // SLOT_SECONDS)
        for _ in range(min(now - self._current, SLOTS)):
            self._slots.append(Slot(self._state))
        self._current = max(now, self._current)
        return self._slots[-1]
