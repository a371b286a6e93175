"""Calls and failures of the last seconds, in bounded memory."""

from __future__ import annotations

from collections import deque

#: The window moves in steps of its own length divided by this.
SLOTS = 10


class FailureWindow:
    """Count calls and failures over a sliding window of ten slots.

    It holds nothing while there are no failures: the first failure starts it, and it is empty
    again as soon as the last failure has left.

    :param seconds: length of the window in seconds.
    """

    def __init__(self, seconds: float) -> None:
        self._slot_seconds = seconds / SLOTS
        self._slots: deque[list[int]] = deque()  # [slot number, calls, failures], oldest first

    def add(self, now: float, failed: bool) -> tuple[int, int]:
        """Count one call.

        :param now: monotonic time in seconds.
        :param failed: whether it failed.
        :returns: calls and failures within the window; ``(0, 0)`` when no failure is left in it.
        """
        slot = int(now // self._slot_seconds)
        while self._slots and self._slots[0][0] <= slot - SLOTS:
            self._slots.popleft()
        if not self._slots or self._slots[-1][0] != slot:
            self._slots.append([slot, 0, 0])
        self._slots[-1][1] += 1
        self._slots[-1][2] += failed
        failures = sum(entry[2] for entry in self._slots)
        if not failures:
            self._slots.clear()
            return 0, 0
        return sum(entry[1] for entry in self._slots), failures

    def clear(self) -> None:
        """Forget everything."""
        self._slots.clear()
