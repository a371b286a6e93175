"""Limits put to the limiter, and what follows from its decisions: the vocabulary of enforcing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from flask import has_request_context, request
from werkzeug.exceptions import HTTPException

from flask_redis_guard.core.rates import Decision
from flask_redis_guard.errors import RateLimitExceeded, RedisUnavailable
from flask_redis_guard.events import LimitExceeded
from flask_redis_guard.limiting.plan import Charge
from flask_redis_guard.runtime import Runtime, current
from flask_redis_guard.web.limits.declared import Limit, refusing_errors, unavailable

logger = logging.getLogger("flask_redis_guard")

Applied = tuple[Limit, str]
Charged = tuple[Limit, Charge]
Judged = tuple[Limit, Charge, Decision]


class RequestLimits:
    """What was judged in one request, kept on the request itself."""

    def __init__(self) -> None:
        #: Whether the limits ahead of the view were looked for.
        self.checked = False
        self._ahead: dict[Limit, bool] = {}
        #: What the response tells of each limit: the last decision, however often it was asked.
        self.decisions: dict[Limit, Decision] = {}
        #: What may be given back after the response is made.
        self.refundable: list[tuple[Limit, Decision]] = []

    @classmethod
    def current(cls) -> RequestLimits | None:
        """Return those of the current request; ``None`` outside a request."""
        if not has_request_context():
            return None
        state: RequestLimits = vars(request._get_current_object()).setdefault(  # type: ignore[attr-defined]
            "redis_guard_limits", cls()
        )
        return state

    def note(self, judged: Iterable[Judged]) -> None:
        """Note decisions for the response."""
        for limit, _, decision in judged:
            self.decisions[limit] = decision
            if decision.receipt is not None:
                self.refundable.append((limit, decision))

    def cover(self, ahead: dict[Limit, bool]) -> None:
        """Note limits that were judged ahead of the view.

        :param ahead: false for one that may be of a function which the view calls, not of the view.
        """
        self._ahead.update(ahead)

    def covers(self, limit: Limit) -> bool:
        """Tell whether a call needs not be judged: of what the view may call, the first only."""
        own = self._ahead.get(limit)
        if own is False:
            del self._ahead[limit]
        return own is not None


def enforce(applied: Sequence[Applied]) -> None:
    """Judge limits in one go.

    Where a function of the user refuses, the other limits count the request all the same.

    :param applied: limits, each with the scope it has where none was given.
    :raises RateLimitExceeded: if one of them has no room; nothing was charged then.
    :raises RedisUnavailable: if it cannot be told.
    :raises HTTPException: what a function of the user aborted with.
    """
    runtime = current()
    charged: list[Charged] = []
    refusal: HTTPException | None = None
    for one in applied:
        try:
            charged += work_out(runtime, [one])
        except HTTPException as error:  # RedisUnavailable is one
            refusal = refusal or error
    judged = judge(runtime, charged)
    state = RequestLimits.current()
    if state is not None:
        state.note(judged)
    refuse(runtime, judged, current_endpoint())
    if refusal is not None:
        raise refusal


def work_out(runtime: Runtime, applied: Iterable[Applied]) -> list[Charged]:
    """Return what the limiter is to be asked in the current request.

    :raises RedisUnavailable: if a function of the user fails; that of a shadow limit is logged.
    :raises HTTPException: what it aborted with.
    """
    charged: list[Charged] = []
    for limit, scope in applied:
        try:
            with refusing_errors():
                if limit.applies():
                    charged.append((limit, limit.charge(scope, runtime.settings.ipv6_prefix)))
        except HTTPException as error:
            if not limit.shadow:
                raise
            logger.warning("A shadow limit could not be worked out: %s", error)
    return charged


def judge(runtime: Runtime, charged: Sequence[Charged]) -> list[Judged]:
    """Ask the limiter, once, and do as the limits say if Redis is away.

    :raises RedisUnavailable: if it cannot be told and a limit refuses then.
    """
    if not charged:
        return []
    limiter = runtime.limiter
    try:
        decisions = limiter.judge([charge for _, charge in charged])
    except RedisUnavailable as error:
        if any(limit.on_outage == "deny" and not limit.shadow for limit, _ in charged):
            raise unavailable(error)  # noqa: B904 - the same one
        # All of them agreed to go on: some count in this process, the others step back.
        charged = [pair for pair in charged if pair[0].on_outage == "local"]
        decisions = limiter.local.judge([charge for _, charge in charged])
    return [(*pair, decision) for pair, decision in zip(charged, decisions, strict=True)]


def refuse(runtime: Runtime, judged: Iterable[Judged], endpoint: str | None) -> None:
    """Announce every limit that has no room, and refuse.

    :param endpoint: what the signals name.
    :raises RateLimitExceeded: if one of them is more than a shadow.
    """
    refused: list[Decision] = []
    for limit, charge, decision in judged:
        if decision.allowed:
            continue
        if not limit.shadow:
            refused.append(decision)
        runtime.bus.emit(LimitExceeded(decision, endpoint, charge.scope, limit.shadow))
    if refused:
        raise RateLimitExceeded(max(refused, key=lambda decision: decision.retry_after))


def current_endpoint() -> str | None:
    """Return the endpoint that signals name; ``None`` outside a request."""
    return request.endpoint if has_request_context() else None
