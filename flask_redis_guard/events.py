"""Everything that can happen, as frozen records, and the one bus that carries them.

Gate, breaker, limiter, probe, sessions and requests *emit*; the story of an outage, the report,
metrics, alerts and the public signals *subscribe*. A change of the breaker's state is the record
:class:`~flask_redis_guard.core.breaker.Transition`; the :class:`RedisFailed` that caused it comes
before it. No record carries a key, a value, a URL or a password.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import iscoroutine
from typing import Any, TypeVar

from flask_redis_guard.core.breaker import Outcome, Transition
from flask_redis_guard.core.process import ProcessLock
from flask_redis_guard.core.rates import Decision
from flask_redis_guard.errors import RedisUnavailable

__all__ = [
    "Bus",
    "CallBegan",
    "CallFinished",
    "CallRefused",
    "Checked",
    "DowntimeExtended",
    "FailureRateHigh",
    "LimitExceeded",
    "LimitsDecided",
    "PrimaryChanged",
    "RedisFailed",
    "RedisRecovered",
    "RequestRefused",
    "SessionFailed",
    "SessionUnreadable",
    "Tick",
    "Transition",
]

logger = logging.getLogger("flask_redis_guard")

E = TypeVar("E")


# -- of operations -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CallBegan:
    """An operation is about to ask the breaker."""

    operation: str


@dataclass(frozen=True, slots=True)
class CallRefused:
    """The breaker let an operation not pass."""

    operation: str


@dataclass(frozen=True, slots=True)
class CallFinished:
    """An operation that the breaker let pass has ended."""

    operation: str
    outcome: Outcome
    #: Seconds from its beginning.
    seconds: float
    #: What it raised, if anything.
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class RedisFailed:
    """An operation failed in a way that counts against Redis."""

    error: RedisUnavailable
    #: Failures in a row, this one included.
    failure_count: int


# -- of Redis ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Checked:
    """A background check, or one that a health request asked for, has ended."""

    healthy: bool
    #: Milliseconds from asking to the answer; ``None`` where there was none.
    latency_ms: float | None
    #: When it began, on the monotonic clock, in seconds.
    at: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: a turn of the background check, with or without a question to Redis."""


@dataclass(frozen=True, slots=True)
class PrimaryChanged:
    """The sentinels name another primary: connections to the one before are of no use."""

    previous: tuple[str, int]
    current: tuple[str, int]


@dataclass(frozen=True, slots=True)
class RedisRecovered:
    """Redis serves again after the breaker had been open; once for each outage and worker."""

    #: Seconds since the outage's first failure.
    downtime: float
    #: Whether another worker of this host tells the world of it.
    told_elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class FailureRateHigh:
    """Many failures within the window; once for each outage."""

    failures: int
    window_seconds: float


@dataclass(frozen=True, slots=True)
class DowntimeExtended:
    """Redis has been down for longer than the alert threshold; once for each outage and worker."""

    #: Seconds since the outage's first failure.
    downtime: float
    #: Whether another worker of this host tells the world of it.
    told_elsewhere: bool = False


# -- of requests ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RequestRefused:
    """A request was answered with 503, or a connection closed, because Redis could not be asked."""

    error: RedisUnavailable
    #: ``None`` where no route matched.
    endpoint: str | None


@dataclass(frozen=True, slots=True)
class LimitsDecided:
    """The limiter has judged the limits of one request."""

    decisions: Sequence[Decision]
    #: For each of them whether the limit only watches.
    shadow: Sequence[bool]


@dataclass(frozen=True, slots=True)
class LimitExceeded:
    """A caller was over a limit (429), or would have been in shadow mode."""

    decision: Decision
    #: ``None`` outside a request.
    endpoint: str | None
    scope: str
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class SessionUnreadable:
    """What is stored for a session cannot be read."""

    #: ``format`` or ``payload``.
    reason: str


@dataclass(frozen=True, slots=True)
class SessionFailed:
    """Redis could not serve a session."""

    #: ``load``, ``save``, ``delete`` or ``revoke``.
    operation: str


# -- the bus -------------------------------------------------------------------------------------


class Bus:
    """Carry each event to those who subscribed to its kind, in the order of their subscriptions.

    The events of the hot path have an attribute here each, which is true while somebody has
    subscribed: an emitter tests it before it makes the record.
    """

    #: Whether somebody hears :class:`CallBegan`, :class:`CallRefused`, :class:`CallFinished` and
    #: :class:`LimitsDecided`.
    begins: bool
    refusals: bool
    calls: bool
    decisions: bool

    def __init__(self) -> None:
        self._lock = ProcessLock()
        self._receivers: dict[type[Any], tuple[Callable[[Any], object], ...]] = {}
        self._note_heard()

    def subscribe(self, kind: type[E], receiver: Callable[[E], object]) -> None:
        """Call a receiver with each event of a kind from now on; a second time changes nothing.

        Receivers run in the thread or greenlet in which the event happened. What one raises is
        logged and changes nothing. An event that follows from this one is *returned* by the
        receiver, and told when everybody has been told of its cause.

        :param kind: the record's class.
        :param receiver: held strongly.
        """
        with self._lock:
            others = self._receivers.get(kind, ())
            if receiver not in others:
                self._receivers[kind] = (*others, receiver)
                self._note_heard()

    def unsubscribe(self, kind: type[E], receiver: Callable[[E], object]) -> None:
        """Call a receiver no more; one that is not subscribed is no error."""
        with self._lock:
            others = self._receivers.get(kind, ())
            self._receivers[kind] = tuple(other for other in others if other != receiver)
            self._note_heard()

    def emit(self, event: object) -> None:
        """Tell everybody who subscribed to an event's kind.

        An interruption (a killed greenlet, ``KeyboardInterrupt``) is raised once all are told.
        """
        effects: list[object] = []
        interruption: BaseException | None = None
        for receiver in self._receivers.get(type(event), ()):
            effect, raised = call(receiver, type(event).__name__, event)
            interruption = interruption or raised
            if effect is not None:
                effects.append(effect)
        for effect in effects:
            try:
                self.emit(effect)
            except BaseException as exc:  # noqa: BLE001 - raised below, when all are told
                interruption = interruption or exc
        if interruption is not None:
            raise interruption

    def _note_heard(self) -> None:
        heard = {kind for kind, receivers in self._receivers.items() if receivers}
        self.begins = CallBegan in heard
        self.refusals = CallRefused in heard
        self.calls = CallFinished in heard
        self.decisions = LimitsDecided in heard


def call(
    receiver: Callable[..., object], name: object, *args: object, **named: object
) -> tuple[object, BaseException | None]:
    """Call a receiver so that it disturbs neither the emitter nor another receiver.

    :param name: what the log calls the event.
    :returns: what it returned, and an interruption to be raised when all others have been called.
    """
    try:
        result = receiver(*args, **named)
        if iscoroutine(result):
            result.close()
            raise TypeError("a receiver may not be async: nobody would await it")
    except Exception:
        logger.exception("A receiver of %s failed", name)
        return None, None
    except BaseException as exc:  # noqa: BLE001 - raised by the emitter when all others are told
        return None, exc
    return result, None
