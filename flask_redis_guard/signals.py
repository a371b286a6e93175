"""The blinker signals. The sender is always the Flask app (never a proxy).

Subscribe with ``circuit_state_changed.connect(receiver, app)`` for one app, or without ``app`` for
all. Receivers run in the thread or greenlet in which the event happened and must be quick; what
one raises is logged and changes nothing. No signal carries a key, a value, a URL or a password.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from blinker import Namespace, Signal

from flask_redis_guard import events
from flask_redis_guard.events import Bus

E = TypeVar("E")

_signals = Namespace()

circuit_state_changed = _signals.signal(
    "circuit-state-changed",
    doc="""The breaker changed its state; sent once for each transition, in order.

    :param previous: the :class:`~flask_redis_guard.CircuitState` before.
    :param current: the state now.
    :param reason: ``consecutive-failures``, ``failure-rate``, ``probe-failed``,
        ``redis-answered``, ``probes-succeeded``, ``open-time-over``, ``operator``,
        ``another-worker``, ``workers-together`` or, on a cluster, ``primary-replaced``.
    :param failure_count: failures that led here.
    :param retry_after: seconds until a probe is let through; 0 unless it opened.
    """,
)

redis_failure = _signals.signal(
    "redis-failure",
    doc="""An operation failed in a way that counts against Redis.

    :param error: the :class:`~flask_redis_guard.RedisUnavailable`: its ``operation``, ``reason``.
    :param failure_count: failures in a row.
    """,
)

redis_recovered = _signals.signal(
    "redis-recovered",
    doc="""Redis serves again after the breaker had been open; sent once for each outage of
    a host, by one of its workers.

    :param downtime: seconds since the outage's first failure.
    """,
)

failure_rate_high = _signals.signal(
    "failure-rate-high",
    doc="""Many failures within the window, whether or not the breaker opened; once for each outage.

    :param failures: how many.
    :param window_seconds: within how many seconds.
    """,
)

downtime_extended = _signals.signal(
    "downtime-extended",
    doc="""Redis has been down for longer than the alert threshold; once for each outage of a host.

    :param downtime: seconds since the outage's first failure.
    """,
)

rate_limit_exceeded = _signals.signal(
    "rate-limit-exceeded",
    doc="""A caller was over a limit (429), or would have been in shadow mode.

    :param decision: the :class:`~flask_redis_guard.Decision`.
    :param endpoint: the Flask endpoint, or ``None`` outside a request.
    :param scope: the limit's scope.
    :param shadow: whether the limit only watches, so that the request went on.
    """,
)

request_refused = _signals.signal(
    "request-refused",
    doc="""A request was answered with 503 because Redis could not be asked.

    :param error: the :class:`~flask_redis_guard.RedisUnavailable`.
    :param endpoint: the Flask endpoint, or ``None`` where no route matched.
    """,
)

session_unreadable = _signals.signal(
    "session-unreadable",
    doc="""What is stored for a session cannot be read; the request goes on with an empty one.

    :param reason: ``format`` or ``payload``.
    """,
)


def follow(bus: Bus, app: Any) -> None:
    """Send the signals of what a bus tells, with the app as the sender.

    :param bus: the app's events.
    :param app: the Flask app.
    """

    def relay(kind: type[E], signal: Signal, read: Callable[[E], dict[str, Any]]) -> None:
        def tell(event: E) -> None:
            if signal.receivers and not getattr(event, "told_elsewhere", False):
                send(signal, app, **read(event))

        bus.subscribe(kind, tell)

    relay(
        events.Transition,
        circuit_state_changed,
        lambda event: {
            "previous": event.previous,
            "current": event.current,
            "reason": event.reason,
            "failure_count": event.failures,
            "retry_after": event.open_for,
        },
    )
    relay(events.RedisFailed, redis_failure, _fields)
    relay(events.RedisRecovered, redis_recovered, _fields)
    relay(events.FailureRateHigh, failure_rate_high, _fields)
    relay(events.DowntimeExtended, downtime_extended, _fields)
    relay(events.LimitExceeded, rate_limit_exceeded, _fields)
    relay(events.RequestRefused, request_refused, _fields)
    relay(events.SessionUnreadable, session_unreadable, _fields)


def _fields(event: Any) -> dict[str, Any]:
    names = (name for name in event.__slots__ if name != "told_elsewhere")
    return {name: getattr(event, name) for name in names}


def send(signal: Signal, app: Any, **event: Any) -> None:
    """Send a signal so that no receiver can disturb the sender or another receiver.

    :param signal: one of the signals above.
    :param app: the Flask app, the sender.
    :param event: the signal's parameters.
    """
    if signal.is_muted or not signal.receivers:
        return
    interruption: BaseException | None = None
    name = f"the signal {getattr(signal, 'name', '')!r}"
    for receiver in signal.receivers_for(app):
        _, raised = events.call(receiver, name, app, **event)
        interruption = interruption or raised
    if interruption is not None:
        raise interruption
