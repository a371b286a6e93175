"""What limits do to a request: judged together, they admit it, refuse it, or stand aside."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from flask import Flask, Response, has_request_context, request
from werkzeug.exceptions import HTTPException

from flask_redis_guard.client.outcomes import goes_on
from flask_redis_guard.core.process import ProcessLock
from flask_redis_guard.core.rates import Decision
from flask_redis_guard.errors import RateLimitExceeded, RedisUnavailable
from flask_redis_guard.events import LimitExceeded
from flask_redis_guard.limiting.plan import Charge
from flask_redis_guard.runtime import Runtime, current
from flask_redis_guard.web.limits.declared import Limit, refusing_errors, unavailable
from flask_redis_guard.web.limits.headers import (
    Header,
    Policy,
    policies_of,
    rate_limit_fields,
    violated,
    with_fields,
)
from flask_redis_guard.web.limits.resolve import Route

logger = logging.getLogger("flask_redis_guard")

Applied = tuple[Limit, str]
Charged = tuple[Limit, Charge]
Judged = tuple[Limit, Charge, Decision]

#: Where a request keeps its :class:`RequestLimits`.
STATE = "redis_guard_limits"

#: Where a WSGI environment has a list that it is put into, for the headers of the response.
TOLD = "flask_redis_guard.limits"


class Held(Protocol):
    """What a request holds until it ends, or until its response has been sent."""

    def keep_until_sent(self, response: Response) -> None:
        """Free it once a response, which may be a stream, has been sent."""

    def end(self, *, failed: bool) -> None:
        """The request ends; free it unless a response goes on with it.

        :param failed: no response will be sent.
        """


class Ahead(Protocol):
    """Limits that are prepared to be judged ahead of a view."""

    def policies(self, decisions: Sequence[Decision]) -> dict[object, list[Policy]]:
        """Return what a response tells of each limit."""

    def fields(self, decisions: Sequence[Decision]) -> list[Header] | None:
        """Return what it tells of all of them, if that is prepared."""


class RequestLimits:
    """What was judged in one request, kept on the request itself."""

    # Defaults of the class: one is made for each request, and most stay as they are.
    #: Whether the limits ahead of the view were looked for.
    checked = False
    #: Known once the limits ahead have admitted the request.
    route: Route | None = None
    #: What the limits decided that are judged ahead of the view, where they are prepared.
    ahead: tuple[Ahead, list[Decision]] | None = None
    #: :attr:`policies`, once something is judged that is not prepared.
    listed: dict[object, list[Policy]] | None = None
    #: What may be given back after the response is made.
    refundable: list[tuple[Limit, Decision]] | None = None
    held: list[Held] | None = None
    _failing: BaseException | None = None
    _called: set[Limit] | None = None

    @classmethod
    def current(cls) -> RequestLimits | None:
        """Return those of the current request; ``None`` outside a request."""
        try:
            known: dict[str, Any] = request._get_current_object().__dict__  # type: ignore[attr-defined]
        except RuntimeError:
            return None
        state: RequestLimits | None = known.get(STATE)
        if state is None:
            state = known[STATE] = cls()
        return state

    @property
    def policies(self) -> dict[object, list[Policy]]:
        """What the response tells of each limit: the last decision, however often it was asked."""
        if self.listed is None:
            self.listed = {}
            if self.ahead is not None:
                prepared, decisions = self.ahead
                self.listed.update(prepared.policies(decisions))
        return self.listed

    def note(self, judged: Iterable[Judged]) -> None:
        """Note decisions for the response."""
        for limit, charge, decision in judged:
            if not limit.shadow:
                self.policies[limit] = policies_of(charge.rates, decision)
            if decision.receipt is not None:
                if self.refundable is None:
                    see_responses(current().app)
                self.refundable = [*(self.refundable or ()), (limit, decision)]

    def covers(self, limit: Limit) -> bool:
        """Tell whether a call needs not be judged: of what the view may call, the first only."""
        route = self.route
        return route is not None and (limit in route.covered or self.covers_once(limit))

    def covers_once(self, limit: Limit) -> bool:
        """Tell whether this is the first call of a function that may be the view's own."""
        route = self.route
        if route is None or limit not in route.covered_once or limit in (self._called or ()):
            return False
        self._called = {limit, *(self._called or ())}
        return True

    def scope_of(self, declared: Any) -> str | None:
        """Return the scope of a declaration that is the view's own; ``None`` for others."""
        return None if self.route is None else self.route.scopes.get(declared)

    def hold(self, held: Held) -> None:
        """Free something when the request ends, or with its response if that is a stream."""
        if self.held is None:
            see_responses(current().app)
            self.held = []
            self._failing = sys.exc_info()[1]  # of who called the app, if anything
        self.held.append(held)

    def end(self) -> None:
        """The request ends: nothing is sent any more but a response that is finished by now."""
        error = sys.exc_info()[1]
        failed = error is not None and error is not self._failing
        for held in self.held or ():
            held.end(failed=failed)


_overriding = ProcessLock()


def see_responses(app: Flask) -> None:
    """From now on, see the responses and the end of an app's requests.

    Only where that is needed: something is held until then or may be given back, or a response is
    made without WSGI.
    """
    with _overriding:
        process: Any = app.process_response
        teardown: Any = app.do_teardown_request
        if getattr(process, "__module__", None) == __name__:
            return

        def process_response(*args: Any) -> Response:
            response: Response = process(*args)
            state = RequestLimits.current()
            if state is not None:
                _finish(current(), state, response)
            return response

        def do_teardown_request(*args: Any) -> None:
            try:
                teardown(*args)
            finally:
                state = RequestLimits.current()
                if state is not None and state.held is not None:
                    state.end()

        vars(app).update(process_response=process_response, do_teardown_request=do_teardown_request)


def _finish(runtime: Runtime, state: RequestLimits, response: Response) -> None:
    """See to what was held or may be given back, now that a response is made."""
    for held in state.held or ():
        held.keep_until_sent(response)
    if TOLD not in request.environ:
        fields = fields_of(state, runtime)
        told = with_fields(response.status, list(response.headers.items()), fields)
        response.headers.extend(told[len(told) - len(fields) :] if fields else ())
    for limit, decision in state.refundable or ():
        try:
            if limit.is_refunded(response):
                runtime.limiter.refund(decision)
        except RedisUnavailable as error:  # which only makes the limit stricter
            logger.warning("A charge could not be given back: %s", error)
        except Exception:
            logger.exception("A charge could not be given back")


def fields_of(state: RequestLimits, runtime: Runtime) -> list[Header]:
    """Return what a response tells of the limits of its request."""
    if state.listed is None:
        if state.ahead is None:
            return []
        prepared = state.ahead[0].fields(state.ahead[1])
        if prepared is not None:
            return prepared
    policies = [policy for listed in state.policies.values() for policy in listed]
    return rate_limit_fields(policies, runtime.settings.rate_limit_headers)


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
                    charged.append((limit, limit.charge(scope, runtime.settings)))
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
    try:
        decisions = runtime.limiter.judge([charge for _, charge in charged])
    except RedisUnavailable as error:
        return without_redis(runtime, charged, error)
    return [(*pair, decision) for pair, decision in zip(charged, decisions, strict=True)]


def without_redis(
    runtime: Runtime, charged: Sequence[Charged], error: RedisUnavailable
) -> list[Judged]:
    """Do as the limits say while Redis is away.

    :raises RedisUnavailable: if one of them refuses then.
    """
    if not all(limit.shadow or goes_on(error, limit.on_outage) for limit, _ in charged):
        raise unavailable(error)
    # All of them agreed to go on: some count in this process, the others step back.
    charged = [pair for pair in charged if pair[0].on_outage == "local"]
    decisions = runtime.limiter.local.judge([charge for _, charge in charged])
    return [(*pair, decision) for pair, decision in zip(charged, decisions, strict=True)]


def refuse(runtime: Runtime, judged: Iterable[Judged], endpoint: str | None) -> None:
    """Announce every limit that has no room, and refuse.

    :param endpoint: what the signals name.
    :raises RateLimitExceeded: if one of them is more than a shadow.
    """
    refused: list[tuple[Charge, Decision]] = []
    for limit, charge, decision in judged:
        if not decision.allowed:
            if not limit.shadow:
                refused.append((charge, decision))
            announce(runtime, decision, endpoint, charge.scope, shadow=limit.shadow)
    if refused:
        policies = [policy for one in refused for policy in policies_of(one[0].rates, one[1])]
        worst = max((decision for _, decision in refused), key=lambda one: one.retry_after)
        raise exceeded(worst, policies)


def exceeded(decision: Decision, policies: list[Policy]) -> RateLimitExceeded:
    """Return the refusal, which names what it violates as the headers of the response do.

    :param policies: of the limits that refuse, for where there is no response.
    """
    state = RequestLimits.current()
    told = [] if state is None else [one for listed in state.policies.values() for one in listed]
    return RateLimitExceeded(decision, violated(told) or violated(policies))


def announce(
    runtime: Runtime, decision: Decision, endpoint: str | None, scope: str, *, shadow: bool = False
) -> None:
    """Tell that a limit had no room."""
    runtime.bus.emit(LimitExceeded(decision, endpoint, scope, shadow))


def current_endpoint() -> str | None:
    """Return the endpoint that signals name; ``None`` outside a request."""
    return request.endpoint if has_request_context() else None
