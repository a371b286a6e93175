"""The circuit breaker: who may call Redis now, and what the last calls say about it.

The state machine is the classic one (Nygard, *Release It!*): closed, open, half-open, with two
operator modes beside it. The closed state is the hot path and takes no lock: all callers share
one permit, and a success changes nothing as long as no failure is pending.
"""

from __future__ import annotations

import logging
import os
import random
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from flask_redis_guard.core.arguments import check_counts, check_numbers
from flask_redis_guard.core.process import ProcessLock

__all__ = [
    "ANOTHER_WORKER",
    "TOGETHER",
    "CircuitBreaker",
    "CircuitState",
    "Outcome",
    "Permit",
    "Refusal",
    "Transition",
]

logger = logging.getLogger("flask_redis_guard")

T = TypeVar("T")

#: Makes what is announced from the failures in a row and the seconds to wait.
Cause = Callable[[int, float], object]

# Not the module's functions: an application may have seeded those, and count on their sequence.
dice = random.Random()
os.register_at_fork(after_in_child=dice.seed)

#: The open time is stretched by up to this part, so that many processes do not probe in step.
JITTER = 0.1

#: The reason of transitions that follow what another worker of this host has found out.
ANOTHER_WORKER = "another-worker"
#: The reason of an opening that the failures of several workers of this host led to together.
TOGETHER = "workers-together"

#: The window moves in steps of its own length divided by this.
SLOTS = 10


# -- words -----------------------------------------------------------------------------------------


class CircuitState(str, Enum):
    """What the breaker does with a caller."""

    CLOSED = "closed"  #: everybody passes
    OPEN = "open"  #: nobody passes until the open time is over
    HALF_OPEN = "half-open"  #: a limited number of probes passes
    FORCED_OPEN = "forced-open"  #: an operator keeps everybody out
    DISABLED = "disabled"  #: an operator lets everybody pass; outcomes are not counted

    __str__ = str.__str__  # the bare value in logs and formats on every Python version


class Outcome(Enum):
    """What one finished call says about Redis."""

    SUCCESS = "success"  #: the server answered
    FAILURE = "failure"  #: Redis cannot serve
    NEUTRAL = "neutral"  #: says nothing about Redis: the caller's mistake, a killed greenlet


@dataclass(frozen=True, slots=True, eq=False)
class Permit:
    """Leave to make one call; hand it back with :meth:`CircuitBreaker.settle`."""

    generation: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer of an open breaker; false in a boolean context."""

    state: CircuitState
    #: Seconds until asking again can make sense.
    retry_after: float

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of state, announced after the fact and outside the lock."""

    previous: CircuitState
    current: CircuitState
    #: ``consecutive-failures``, ``failure-rate``, ``probe-failed``, ``redis-answered``,
    #: ``probes-succeeded``, ``open-time-over``, ``operator``, ``another-worker``,
    #: ``workers-together``; on a cluster ``primary-replaced``.
    reason: str
    #: Failures that led here: consecutive ones, or those within the window.
    failures: int
    #: Seconds until the breaker lets a probe pass; 0 unless it opened.
    open_for: float = 0.0


# -- the breaker -----------------------------------------------------------------------------------


_EVERYBODY_PASSES = (CircuitState.CLOSED, CircuitState.DISABLED)


class CircuitBreaker:
    """Decide whether Redis may be called, from how the last calls ended.

    :param failure_threshold: consecutive failures that open it.
    :param failure_rate: part of the calls within the window, above 0 and at most 1, whose failing
        opens it as well. The window starts with the first failure: earlier calls do not dilute it.
    :param minimum_calls: calls the window must hold before the rate counts.
    :param window_seconds: length of that window in seconds.
    :param success_threshold: successful probes that close it.
    :param open_seconds: seconds it stays open; up to 10 % of random jitter come on top.
    :param half_open_permits: probes in flight at once while half-open.
    :param lease_seconds: seconds after which a probe that was never settled gives its permit back.
    :param clock: monotonic time in seconds.
    :param random: uniform random numbers in [0, 1).
    :param on_transition: where transitions are announced, in order, outside the lock, each after
        what ``settle()`` was told to have caused it. What it raises is logged and changes
        nothing.
    :raises ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        *,
        failure_threshold: int = 5,
        failure_rate: float = 0.5,
        minimum_calls: int = 20,
        window_seconds: float = 10.0,
        success_threshold: int = 2,
        open_seconds: float = 30.0,
        half_open_permits: int = 1,
        lease_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = dice.random,
        on_transition: Callable[[Any], object] | None = None,
    ) -> None:
        check_counts(
            failure_threshold=failure_threshold,
            minimum_calls=minimum_calls,
            success_threshold=success_threshold,
            half_open_permits=half_open_permits,
        )
        check_numbers(
            window_seconds=window_seconds, open_seconds=open_seconds, lease_seconds=lease_seconds
        )
        check_numbers(failure_rate=failure_rate, at_most=1)
        self._failure_threshold = failure_threshold
        self._failure_rate = failure_rate
        self._minimum_calls = minimum_calls
        self._success_threshold = success_threshold
        self._open_seconds = open_seconds
        self._clock = clock
        self._random = random
        self._announcer: Announcer[object] = Announcer(on_transition or (lambda _: None))
        self._lock = ProcessLock()
        self._state = CircuitState.CLOSED
        self._since = clock()
        self._generation = 0
        #: What all callers get while everybody passes; ``None`` while they have to ask.
        self.shared: Permit | None = Permit(0)
        #: Whether a failure is remembered, so that a success matters.
        self.pending = False
        self._consecutive = 0
        self._window = FailureWindow(window_seconds)
        self._open_until = 0.0
        self._expected_until = 0.0  # while open: when the background prober has asked again
        self._successes = 0
        self._leases = Leases(half_open_permits, lease_seconds)
        #: What was counted before another worker's word opened it, as long as nothing else has.
        self._borrowed: tuple[int, FailureWindow] | None = None
        #: The last transition.
        self.latest: Transition | None = None

    def try_acquire(self, *, probe: bool = False) -> Permit | Refusal:
        """Ask for leave to call Redis once.

        :param probe: whether the background prober asks: it may while open, too, and its turn comes
            first when half-open.
        :returns: a :class:`Permit` to be settled, or a :class:`Refusal` (which is false).
        """
        shared = self.shared
        if shared is not None:
            return shared
        if self._state is CircuitState.OPEN and not probe:
            until, expected = self._open_until, self._expected_until
            left = max(until, expected) - self._clock()
            if left > 0:
                return Refusal(CircuitState.OPEN, left)
        elif self._state is CircuitState.FORCED_OPEN:
            return Refusal(CircuitState.FORCED_OPEN, self._open_seconds)
        with self._lock:
            answer = self._decide(probe)
        self._announcer.deliver()
        return answer

    def has_opened_since(self, permit: Permit) -> bool:
        """Tell whether nobody may call Redis now, though somebody could when a permit was given."""
        return permit.generation != self._generation and self._state in (
            CircuitState.OPEN,
            CircuitState.FORCED_OPEN,
        )

    def settle(self, permit: Permit, outcome: Outcome, cause: Cause | None = None) -> None:
        """End a call. A permit of an earlier generation, or an expired one, changes nothing.

        :param permit: what :meth:`try_acquire` gave.
        :param outcome: what the call says about Redis.
        :param cause: makes what is announced ahead of the transition that this outcome causes, if
            any. Called under the lock with the failures in a row and the seconds to wait.
        """
        if permit is self.shared and (
            (outcome is Outcome.SUCCESS and not self.pending)
            or outcome is Outcome.NEUTRAL  # a finalizer's, that runs in the middle of the below
        ):
            return
        with self._lock:
            effect = self._settle(permit, outcome)
            if cause is not None:
                self._announcer.add(cause(self._consecutive, self._wait()))
            if effect is not None:
                self._announcer.add(effect)
        self._announcer.deliver()

    @property
    def state(self) -> CircuitState:
        """The state now; an open breaker whose time is over is half-open."""
        if self._state is CircuitState.OPEN:
            with self._lock:
                self._end_open_time()
            self._announcer.deliver()
        return self._state

    @property
    def failure_count(self) -> int:
        """Failures in a row since the last success."""
        return self._consecutive

    @property
    def seconds_in_state(self) -> float:
        """Seconds since the last transition."""
        return self._clock() - self._since

    @property
    def retry_after(self) -> float:
        """Seconds until a refused caller may try again; 0 while everybody passes."""
        _ = self.state  # it may have changed by the mere passing of time
        return self._wait()

    @property
    def refusing(self) -> bool:
        """Whether users are kept out now; a half-open breaker keeps them out until a probe of the
        background monitor went through, or the time that is reserved for it is over."""
        state = self.state
        if state is CircuitState.HALF_OPEN:
            return self._leases.is_reserved(self._clock())
        return state in (CircuitState.OPEN, CircuitState.FORCED_OPEN)

    @property
    def primaries(self) -> Mapping[str, CircuitBreaker]:
        """On a cluster the breaker of each primary, by ``host:port``; else empty."""
        return {}

    # -- for operators and the monitor ---------------------------------------------------------

    def reset(self) -> None:
        """Close the breaker and forget all failures; ends an operator mode as well."""
        self._operate(CircuitState.CLOSED)

    def force_open(self) -> None:
        """Keep everybody out until :meth:`reset`."""
        self._operate(CircuitState.FORCED_OPEN)

    def disable(self) -> None:
        """Let everybody pass and count nothing until :meth:`reset`."""
        self._operate(CircuitState.DISABLED)

    def reserve_probes(self, seconds: float) -> None:
        """Keep a half-open breaker's first permit for ``try_acquire(probe=True)``.

        :param seconds: how long users wait for that probe to succeed before they may probe
            themselves, so that a monitor that died wedges nothing; 0 ends the reservation.
        """
        self._leases.reserve(seconds, self._clock())

    def expect_probe(self, seconds: float) -> None:
        """Stay open for ``try_acquire(probe=True)``: a background prober is at work.

        :param seconds: within which it will have asked again. If it has not, users may probe when
            the open time is over, so that a prober that died wedges nothing; 0: it has stopped.
        """
        self._expected_until = self._clock() + seconds

    def end_open_time(self) -> None:
        """Let probes pass now: another server stands where the failed one stood."""
        self._open_until = self._expected_until = 0.0

    # -- for what other workers of the host know -------------------------------------------------

    @property
    def borrowed(self) -> bool:
        """Whether it is open for no other reason than :meth:`adopt`."""
        return self._borrowed is not None

    def adopt(self, failures: int, reason: str = ANOTHER_WORKER) -> bool:
        """Open because another worker found Redis away; only a closed breaker does.

        :param failures: those that the other one has seen, or all of them together.
        :param reason: of the transition.
        :returns: whether it opened.
        """
        with self._lock:
            if self._state is not CircuitState.CLOSED:
                return False
            kept = self._consecutive, self._window
            self._window = self._window.anew()
            transition = self._enter(CircuitState.OPEN, reason, failures)
            self._borrowed = kept
            if transition is not None:
                self._announcer.add(transition)
        self._announcer.deliver()
        return True

    def release(self) -> bool:
        """Close what nothing but :meth:`adopt` had opened; its own failures count as before.

        :returns: whether it closed.
        """
        with self._lock:
            kept = self._borrowed
            if kept is None or self._state not in (CircuitState.OPEN, CircuitState.HALF_OPEN):
                return False
            transition = self._enter(CircuitState.CLOSED, ANOTHER_WORKER, 0)
            self._consecutive, self._window = kept
            self.pending = bool(self._consecutive or self._window)
            if transition is not None:
                self._announcer.add(transition)
        self._announcer.deliver()
        return True

    # -- under the lock ------------------------------------------------------------------------

    def _decide(self, probe: bool) -> Permit | Refusal:
        self._end_open_time()
        if self._state in _EVERYBODY_PASSES:
            # Only a process forked within a transition finds no permit here: it makes one.
            self.shared = self.shared or Permit(self._generation)
            return self.shared
        permit = None
        if self._state is CircuitState.HALF_OPEN or (probe and self._state is CircuitState.OPEN):
            permit = self._leases.grant(self._generation, self._clock(), probe=probe)
        return permit or Refusal(self._state, self._wait())

    def _wait(self) -> float:
        now = self._clock()
        if self._state is CircuitState.OPEN:
            return max(0.0, max(self._open_until, self._expected_until) - now)
        if self._state is CircuitState.FORCED_OPEN:
            return self._open_seconds
        if self._state is CircuitState.HALF_OPEN:
            return max(0.0, self._leases.next_free(now) - now)
        return 0.0

    def _end_open_time(self) -> None:
        if self._state is CircuitState.OPEN and self._clock() >= max(
            self._open_until, self._expected_until
        ):
            transition = self._enter(CircuitState.HALF_OPEN, "open-time-over", self._consecutive)
            if transition is not None:
                self._announcer.add(transition)

    def _settle(self, permit: Permit, outcome: Outcome) -> Transition | None:
        if permit.generation != self._generation:
            return None
        if self._state is CircuitState.CLOSED:
            return None if outcome is Outcome.NEUTRAL else self._settle_closed(outcome)
        if not self._leases.end(permit, self._clock()):
            return None
        if self._state is CircuitState.OPEN:
            return self._settle_recovery(outcome)
        return self._settle_probe(outcome)

    def _settle_closed(self, outcome: Outcome) -> Transition | None:
        failed = outcome is Outcome.FAILURE
        calls, failures = self._window.add(self._clock(), failed)
        self._consecutive = self._consecutive + 1 if failed else 0
        self.pending = bool(failures)
        if self._consecutive >= self._failure_threshold:
            return self._enter(CircuitState.OPEN, "consecutive-failures", self._consecutive)
        if calls >= self._minimum_calls and failures >= self._failure_rate * calls and failed:
            return self._enter(CircuitState.OPEN, "failure-rate", failures)
        return None

    def _settle_recovery(self, outcome: Outcome) -> Transition | None:
        if outcome is Outcome.SUCCESS:
            transition = self._enter(CircuitState.HALF_OPEN, "redis-answered", self._consecutive)
            self._successes = 1
            return transition
        if outcome is Outcome.FAILURE:
            self._consecutive += 1
            self._borrowed = None  # it has seen for itself
            if self._clock() >= self._open_until:  # another open time, as after any failed probe
                self._open_until = self._clock() + self._open_time()
        return None

    def _open_time(self) -> float:
        return self._open_seconds * (1 + JITTER * self._random())

    def _settle_probe(self, outcome: Outcome) -> Transition | None:
        if outcome is Outcome.FAILURE:
            self._consecutive += 1
            return self._enter(CircuitState.OPEN, "probe-failed", self._consecutive)
        if outcome is Outcome.SUCCESS:
            self._successes += 1
            self._leases.end_reservation()
            if self._successes >= self._success_threshold:
                return self._enter(CircuitState.CLOSED, "probes-succeeded", 0)
        return None

    def _operate(self, state: CircuitState) -> None:
        with self._lock:
            transition = self._enter(state, "operator", self._consecutive)
            if transition is not None:
                self._announcer.add(transition)
        self._announcer.deliver()

    def _enter(self, state: CircuitState, reason: str, failures: int) -> Transition | None:
        # An exception of a signal handler may end this anywhere, and a process may be forked off in
        # the middle: each step leaves something that lets nobody pass unasked and wedges nothing.
        self.shared = None
        self.pending = False
        self._window.clear()
        self._successes = 0
        now = self._clock()
        self._generation += 1
        self._leases.begin(now)
        open_for = self._open_time() if state is CircuitState.OPEN else 0.0
        self._open_until, self._expected_until = now + open_for, 0.0
        if state is CircuitState.CLOSED:
            self._consecutive = 0
        if state is not CircuitState.HALF_OPEN:
            self._borrowed = None
        previous, self._state, self._since = self._state, state, now
        self.shared = Permit(self._generation) if state in _EVERYBODY_PASSES else None
        if previous is state:
            return None
        self.latest = Transition(previous, state, reason, failures, open_for)
        return self.latest


# -- its parts -------------------------------------------------------------------------------------


class Leases:
    """A limited number of permits in flight, each for a limited time.

    :param permits: how many at once.
    :param seconds: after which one that was not ended is given to somebody else.
    """

    def __init__(self, permits: int, seconds: float) -> None:
        self._permits = permits
        self._seconds = seconds
        self._expiry: dict[Permit, float] = {}
        self._reservation = 0.0
        self._reserved_until = 0.0

    def begin(self, now: float) -> None:
        """Forget all that are in flight, and reserve the first one anew."""
        self._expiry.clear()
        self._reserved_until = now + self._reservation

    def reserve(self, seconds: float, now: float) -> None:
        """Keep the first permit for the background monitor, for so long each time."""
        self._reservation = seconds
        self._reserved_until = min(self._reserved_until, now + seconds)

    def end_reservation(self) -> None:
        """Let users have permits at once."""
        self._reserved_until = 0.0

    def is_reserved(self, now: float) -> bool:
        """Whether the first permit is still kept for the background monitor."""
        return now < self._reserved_until

    def grant(self, generation: int, now: float, *, probe: bool = False) -> Permit | None:
        """Give a permit, or ``None`` while all are in flight or kept for the monitor's probe."""
        if self.is_reserved(now) and not probe:
            return None
        for permit in [p for p, expires in self._expiry.items() if expires <= now]:
            del self._expiry[permit]
        if len(self._expiry) >= self._permits:
            return None
        permit = Permit(generation)
        self._expiry[permit] = now + self._seconds
        return permit

    def end(self, permit: Permit, now: float) -> bool:
        """Take a permit back.

        :returns: whether it was in flight and in time.
        """
        expires = self._expiry.pop(permit, None)
        return expires is not None and now < expires

    def next_free(self, now: float) -> float:
        """Return when, on the clock, users may have the next one at the latest."""
        return max(self._reserved_until, min(list(self._expiry.values()), default=now))


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

    def anew(self) -> FailureWindow:
        """Return an empty one of the same length."""
        return FailureWindow(self._slot_seconds * SLOTS)

    def __bool__(self) -> bool:
        return bool(self._slots)


class Announcer(Generic[T]):
    """Hand items to a callback one at a time, in the order in which they were added.

    A caller that finds items waiting delivers them, unless somebody is at it already: then that one
    goes on until none is left. So a callback may itself cause further items.

    :param callback: receives each item; what it raises is logged and changes nothing.
    """

    def __init__(self, callback: Callable[[T], object]) -> None:
        self._callback = callback
        self._waiting: deque[T] = deque()
        self._lock = ProcessLock()
        self._deliverer: weakref.ref[_Deliverer] | None = None

    def add(self, item: T) -> None:
        """Queue an item; allowed under a caller's lock."""
        self._waiting.append(item)

    def deliver(self) -> None:
        """Deliver what waits; to be called after the caller's lock was released."""
        interruption: BaseException | None = None
        while self._waiting:
            me = _Deliverer(os.getpid())
            try:
                if not self._take_over(me):
                    break
                while self._waiting:
                    interruption = self._deliver_one() or interruption
            finally:
                if self._deliverer is not None and self._deliverer() is me:
                    self._deliverer = None
        if interruption is not None:
            raise interruption

    def _take_over(self, me: _Deliverer) -> bool:
        with self._lock:
            # One whom a signal handler's exception ended is gone; one of the parent is elsewhere.
            other = None if self._deliverer is None else self._deliverer()
            if other is not None and other.pid == me.pid:
                return False
            self._deliverer = weakref.ref(me)
            return True

    def _deliver_one(self) -> BaseException | None:
        try:
            self._callback(self._waiting.popleft())
        except Exception:
            logger.exception("A receiver of a circuit breaker transition failed")
        except BaseException as exc:  # noqa: BLE001 - a killed greenlet: the rest must be told
            return exc
        return None


class _Deliverer:
    """Who is delivering; exists for no longer than that."""

    __slots__ = ("__weakref__", "pid")

    def __init__(self, pid: int) -> None:
        self.pid = pid
