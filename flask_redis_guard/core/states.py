"""The words the breaker speaks in: states, outcomes, permits, refusals and transitions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


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
    #: ``consecutive-failures``, ``failure-rate``, ``probe-failed``, ``probes-succeeded``,
    #: ``open-time-over`` or ``operator``.
    reason: str
    #: Failures that led here: consecutive ones, or those within the window.
    failures: int
    #: Seconds until the breaker lets a probe pass; 0 unless it opened.
    open_for: float = 0.0
