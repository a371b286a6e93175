"""The circuit breaker: who may call Redis now, and what the last calls say about it.

The state machine is the classic one (Nygard, *Release It!*): closed, open, half-open, with two
operator modes beside it. The closed state is the hot path and takes no lock: all callers share
one permit, and a success changes nothing as long as no failure is pending.
"""

from __future__ import annotations

import random as _random
import time
from collections.abc import Callable

from flask_redis_guard.core.announcer import Announcer
from flask_redis_guard.core.arguments import check_counts, check_numbers
from flask_redis_guard.core.leases import Leases
from flask_redis_guard.core.process import ProcessLock
from flask_redis_guard.core.states import CircuitState, Outcome, Permit, Refusal, Transition
from flask_redis_guard.core.window import FailureWindow

__all__ = ["CircuitBreaker", "CircuitState", "Outcome", "Permit", "Refusal", "Transition"]

#: The open time is stretched by up to this part, so that many processes do not probe in step.
JITTER = 0.1

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
    :param on_transition: called with each :class:`Transition`, in order, outside the lock. What it
        raises is logged and changes nothing.
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
        random: Callable[[], float] = _random.random,
        on_transition: Callable[[Transition], object] | None = None,
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
        self._announcer = Announcer(on_transition or (lambda transition: None))
        self._lock = ProcessLock()
        self._state = CircuitState.CLOSED
        self._since = clock()
        self._generation = 0
        self._shared: Permit | None = Permit(0)  # what all callers get while everybody passes
        self._pending = False  # whether a failure is remembered, so that a success matters
        self._consecutive = 0
        self._window = FailureWindow(window_seconds)
        self._open_until = 0.0
        self._successes = 0
        self._leases = Leases(half_open_permits, lease_seconds)

    def try_acquire(self, *, probe: bool = False) -> Permit | Refusal:
        """Ask for leave to call Redis once.

        :param probe: whether the background monitor asks, whose turn comes first when half-open.
        :returns: a :class:`Permit` to be settled, or a :class:`Refusal` (which is false).
        """
        shared = self._shared
        if shared is not None:
            return shared
        with self._lock:
            answer = self._decide(probe)
        self._announcer.deliver()
        return answer

    def settle(self, permit: Permit, outcome: Outcome) -> None:
        """End a call. A permit of an earlier generation, or an expired one, changes nothing.

        :param permit: what :meth:`try_acquire` gave.
        :param outcome: what the call says about Redis.
        """
        if permit is self._shared and (
            (outcome is Outcome.SUCCESS and not self._pending)
            or outcome is Outcome.NEUTRAL  # a finalizer's, that runs in the middle of the below
        ):
            return
        with self._lock:
            if permit.generation == self._generation:
                if self._state is CircuitState.CLOSED:
                    if outcome is not Outcome.NEUTRAL:
                        self._settle_closed(outcome is Outcome.FAILURE)
                elif self._leases.end(permit, self._clock()):
                    self._settle_probe(outcome)
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

    # -- under the lock ------------------------------------------------------------------------

    def _decide(self, probe: bool) -> Permit | Refusal:
        self._end_open_time()
        if self._state in _EVERYBODY_PASSES:
            # Only a process forked within a transition finds no permit here: it makes one.
            self._shared = self._shared or Permit(self._generation)
            return self._shared
        permit = None
        if self._state is CircuitState.HALF_OPEN:
            permit = self._leases.grant(self._generation, self._clock(), probe=probe)
        return permit or Refusal(self._state, self._wait())

    def _wait(self) -> float:
        now = self._clock()
        if self._state is CircuitState.OPEN:
            return max(0.0, self._open_until - now)
        if self._state is CircuitState.FORCED_OPEN:
            return self._open_seconds
        if self._state is CircuitState.HALF_OPEN:
            return max(0.0, self._leases.next_free(now) - now)
        return 0.0

    def _end_open_time(self) -> None:
        if self._state is CircuitState.OPEN and self._clock() >= self._open_until:
            self._enter(CircuitState.HALF_OPEN, "open-time-over", self._consecutive)

    def _settle_closed(self, failed: bool) -> None:
        calls, failures = self._window.add(self._clock(), failed)
        self._consecutive = self._consecutive + 1 if failed else 0
        self._pending = bool(failures)
        if self._consecutive >= self._failure_threshold:
            self._enter(CircuitState.OPEN, "consecutive-failures", self._consecutive)
        elif calls >= self._minimum_calls and failures >= self._failure_rate * calls and failed:
            self._enter(CircuitState.OPEN, "failure-rate", failures)

    def _settle_probe(self, outcome: Outcome) -> None:
        if outcome is Outcome.FAILURE:
            self._consecutive += 1
            self._enter(CircuitState.OPEN, "probe-failed", self._consecutive)
        elif outcome is Outcome.SUCCESS:
            self._successes += 1
            self._leases.end_reservation()
            if self._successes >= self._success_threshold:
                self._enter(CircuitState.CLOSED, "probes-succeeded", 0)

    def _operate(self, state: CircuitState) -> None:
        with self._lock:
            self._enter(state, "operator", self._consecutive)
        self._announcer.deliver()

    def _enter(self, state: CircuitState, reason: str, failures: int) -> None:
        self._shared = None  # first: whoever is forked off in the middle shall not pass unasked
        previous, self._state = self._state, state
        self._since = now = self._clock()
        self._generation += 1
        self._leases.begin(now)
        self._successes = 0
        opening = state is CircuitState.OPEN
        open_for = self._open_seconds * (1 + JITTER * self._random()) if opening else 0.0
        self._open_until = now + open_for
        if state is CircuitState.CLOSED:
            self._consecutive = 0
        self._pending = False
        self._window.clear()
        self._shared = Permit(self._generation) if state in _EVERYBODY_PASSES else None
        if previous is not state:
            self._announcer.add(Transition(previous, state, reason, failures, open_for))
