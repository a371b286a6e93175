"""Time that passes only when told to."""

from __future__ import annotations


class FakeClock:
    """A monotonic clock in seconds, to be handed to what takes a ``clock``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
