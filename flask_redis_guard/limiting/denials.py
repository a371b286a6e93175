"""Remembers refusals exactly, so that a flood is answered without asking the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from flask_redis_guard.core.rates import RateState

#: Seconds after which a remembered refusal is asked about again, in case someone reset the limit.
MAX_AGE: Final = 1.0

#: Seconds by which a refusal is forgotten early: the store counts in whole microseconds, and sums
#: of floats are not exact.
_ROUNDING: Final = 1e-6


@dataclass(slots=True)
class Denial:
    """One refusal by one counter.

    :param key: the counter.
    :param cost: the refused cost; a greater one would be refused too.
    :param sent: monotonic time at which the refused request was sent. The store judged it later
        still, so that what it said about times to come is over no sooner than counted from here.
    :param retry_at: monotonic time before which the store refuses.
    :param ask_at: monotonic time from which one caller is let through to ask.
    :param states: what the counters asked together said, by key.
    """

    key: bytes
    cost: int
    sent: float
    retry_at: float
    ask_at: float
    states: dict[bytes, RateState]
    tickets: list[None] = field(default_factory=lambda: [None])


class DenialCache:
    """A bounded memory of refusals, for threads and greenlets, without any lock.

    Each step on the dictionary is atomic, and no step relies on the one before it: whatever
    happens in between, an entry is exact by itself, and a missing entry means only that the store
    is asked. Beyond ``size`` entries the oldest are dropped.

    :param size: the most refusals remembered; 0 remembers none.
    :param monotonic: a clock in seconds that is never set back.
    """

    def __init__(self, size: int, monotonic: Callable[[], float]) -> None:
        self._size = size
        self._monotonic = monotonic
        #: What is remembered, by counter; empty where there is nothing to look for.
        self.entries: dict[bytes, Denial | float] = {}
        #: Requests answered from memory. A statistic: not synchronised.
        self.hits = 0

    def __len__(self) -> int:
        return len(self.entries)

    def find(self, key: bytes, cost: int) -> Denial | None:
        """The refusal that answers a request of this cost, if there is one.

        Of a refusal older than a second whose time is not over yet, one caller is let through to
        ask the store, the others are answered for another second.
        """
        entry = self.entries.get(key)
        if not isinstance(entry, Denial) or cost < entry.cost:
            return None
        now = self._monotonic()
        if now >= entry.retry_at:
            return None
        if now >= entry.ask_at and _take_ticket(entry):
            return None
        if now >= entry.ask_at + MAX_AGE:  # who asks has not come back: ask as well
            return None
        self.hits += 1
        return entry

    def states(self, denial: Denial) -> dict[bytes, RateState]:
        """What the counters of a remembered refusal say by now.

        The counter that refused goes on refusing in this answer, though its time may run out
        while the answer is made.
        """
        passed = self._monotonic() - denial.sent
        refusing = denial.key
        return {key: _aged(state, passed, key == refusing) for key, state in denial.states.items()}

    def remember(self, key: bytes, cost: int, sent: float, states: dict[bytes, RateState]) -> None:
        """Note that the counter of this key refused what was sent at that time."""
        old = self.entries.get(key)
        if isinstance(old, float) and sent <= old:
            return  # asked before a reset, answered after it
        retry_at = sent + states[key].retry_after - _ROUNDING
        if not self._size or retry_at <= self._monotonic():
            return
        self.entries.pop(key, None)  # so that the new entry is the youngest
        ask_at = min(retry_at, sent + MAX_AGE)
        self.entries[key] = Denial(key, cost, sent, retry_at, ask_at, states)
        self._shrink()

    def forget(self, keys: Iterable[bytes]) -> None:
        """The counters have just been reset: also what was asked before and is answered later."""
        now = self._monotonic()
        for key in keys:
            self.entries.pop(key, None)
            if self._size:
                self.entries[key] = now
        self._shrink()

    def admitted(self, key: bytes, cost: int) -> None:
        """The store admitted this cost: a remembered refusal of as much is not true any more."""
        entry = self.entries.get(key)
        if isinstance(entry, Denial) and entry.cost <= cost:
            self.entries.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self.entries.clear()

    def _shrink(self) -> None:
        while len(self.entries) > self._size:
            try:
                self.entries.pop(next(iter(self.entries)), None)
            except (StopIteration, RuntimeError):  # another thread changed it: look again
                continue


def _take_ticket(denial: Denial) -> bool:
    try:
        denial.tickets.pop()
    except IndexError:
        return False
    return True


def _aged(state: RateState, passed: float, refuses: bool) -> RateState:
    rate, allowed, remaining, reset, retry = state
    reset, retry = reset - passed, retry - passed
    if retry <= 0:
        retry, allowed = 0.0, True
    # Not _replace(), which takes five times as many calls.
    return RateState(rate, allowed and not refuses, remaining, reset if reset > 0 else 0.0, retry)
