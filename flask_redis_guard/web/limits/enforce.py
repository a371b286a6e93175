"""``@rate_limited`` and its kin: a request's limits judged together, ahead of everything else."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from types import FunctionType
from typing import Any, Protocol, TypeVar

from flask import Flask, Request, Response, has_request_context, request
from werkzeug.exceptions import HTTPException
from werkzeug.security import safe_join

from flask_redis_guard.client.outcomes import goes_on
from flask_redis_guard.core.process import ProcessLock
from flask_redis_guard.core.rates import Decision
from flask_redis_guard.errors import ConfigurationError, RateLimitExceeded, RedisUnavailable
from flask_redis_guard.events import LimitExceeded
from flask_redis_guard.limiting.plan import Charge
from flask_redis_guard.runtime import Runtime, current
from flask_redis_guard.web.limits.commands import STANDS_ABOVE, report_weak_limits
from flask_redis_guard.web.limits.declared import (
    Algorithm,
    AppLimits,
    Limit,
    OnOutage,
    Rates,
    refusing_errors,
    unavailable,
)
from flask_redis_guard.web.limits.headers import Policy, policies_of, rate_limit_headers, violated
from flask_redis_guard.web.limits.resolve import (
    Route,
    Routes,
    check_function,
    function_scope,
    mark,
    stands_above,
)
from flask_redis_guard.web.limits.subjects import Key, warn_of_untrusted_proxy

logger = logging.getLogger("flask_redis_guard")

F = TypeVar("F", bound=Callable[..., Any])

Applied = tuple[Limit, str]
Charged = tuple[Limit, Charge]
Judged = tuple[Limit, Charge, Decision]

#: Where a request keeps its :class:`RequestLimits`.
_STATE = "redis_guard_limits"


def rate_limited(
    rates: Rates,
    *,
    key: Key = None,
    cost: int | Callable[[], int] = 1,
    methods: Iterable[str] | None = None,
    exempt_when: Callable[[], bool] | None = None,
    scope: str | None = None,
    algorithm: Algorithm | None = None,
    on_outage: OnOutage = "deny",
    refund_when: Callable[[Response], bool] | None = None,
    defer: bool = False,
    shadow: bool = False,
) -> Callable[[F], F]:
    """Limit how often a view, or any function, may be called.

    A view is checked ahead of every ``before_request`` function, together with the limits of its
    app and blueprint; another function is checked when it is called. The decorator may stand below
    or above the route.

    :param rates: such as ``"5/minute; 100/day"``, a :class:`~flask_redis_guard.Rate`, several, or
        a callable that returns them for each request.
    :param key: who is counted: ``"address"``, ``"user"``, ``"session"``, ``"header:NAME"`` or a
        callable; ``REDIS_GUARD_DEFAULT_KEY`` by default. Clients can change sessions and headers at
        will.
    :param cost: units a call takes from the limit, or a callable that returns them.
    :param methods: HTTP methods that count; all by default.
    :param exempt_when: a callable; when it returns true the limit does not apply.
    :param scope: limits with the same scope, rates and subject share their count. Without it each
        limit has a count of its own.
    :param algorithm: ``"sliding-window"`` (default), ``"token-bucket"`` or ``"fixed-window"``.
    :param on_outage: without Redis: ``"deny"`` (503), ``"local"`` (count in this process, its
        share of the limit) or ``"allow"``.
    :param refund_when: called with the response; when it returns true the charge is given back.
    :param defer: check where the decorator stands, for keys that need the logged-in user.
    :param shadow: count and announce, but refuse nothing: for introducing a limit.
    :raises ConfigurationError: for an argument that cannot be honoured.
    """
    declared = Limit.declare(
        rates,
        methods,
        key=key,
        cost=cost,
        exempt_when=exempt_when,
        scope=scope,
        algorithm=algorithm,
        on_outage=on_outage,
        refund_when=refund_when,
        defer=defer,
        shadow=shadow,
    )

    def decorate(function: F) -> F:
        check_function(function)
        # Of its own: two functions that share a decorator are two limits.
        limit = replace(declared, function_scope=function_scope(function, declared))

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                _check_call(limit)
                return await function(*args, **kwargs)
        else:

            @functools.wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                _check_call(limit)
                return function(*args, **kwargs)

        mark(function, wrapper, limit)
        return wrapper  # type: ignore[return-value]

    if isinstance(rates, FunctionType):
        return _Decorator(rates, decorate)
    return decorate


class _Decorator:
    """What limits by rates from a function, unless that is the view: the parentheses were left out.

    :param rates: the function.
    :param decorate: limits another function by it.
    :raises ConfigurationError: for a function that needs arguments, as no rates do.
    """

    def __init__(self, rates: FunctionType, decorate: Callable[[F], F]) -> None:
        self._rates = rates
        self._decorate = decorate
        try:
            inspect.signature(rates).bind()
        except TypeError:
            raise self._misused() from None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or kwargs or not callable(args[0]):
            raise self._misused()
        return self._decorate(args[0])

    def __getattr__(self, name: str) -> Any:
        if name in ("__name__", "methods", "required_methods"):  # what a route asks a view for
            raise self._misused()
        raise AttributeError(name)

    def _misused(self) -> ConfigurationError:
        accepted = (
            "rates in parentheses, @rate_limited('5/minute'), or a function of no arguments that "
            "returns them"
        )
        return ConfigurationError("rates", self._rates, accepted)


def _check_call(limit: Limit) -> None:
    """Judge a limit at a call of its function, unless that was done ahead of the view."""
    state = RequestLimits.current()
    if state is None or not state.covers(limit):
        enforce([(limit, limit.function_scope)])


class Held(Protocol):
    """What a request holds until it ends, or until its response has been sent."""

    def keep_until_sent(self, response: Response) -> None:
        """Free it once a response, which may be a stream, has been sent."""

    def end(self, *, failed: bool) -> None:
        """The request ends; free it unless a response goes on with it.

        :param failed: no response will be sent.
        """


class RequestLimits:
    """What was judged in one request, kept on the request itself."""

    __slots__ = ("_called", "_failing", "checked", "held", "policies", "refundable", "route")

    def __init__(self) -> None:
        #: Whether the limits ahead of the view were looked for.
        self.checked = False
        self.route: Route | None = None
        #: What the response tells of each limit: the last decision, however often it was asked.
        self.policies: dict[object, list[Policy]] = {}
        #: What may be given back after the response is made.
        self.refundable: list[tuple[Limit, Decision]] = []
        self.held: list[Held] = []
        self._failing: BaseException | None = None
        self._called: set[Limit] = set()

    @classmethod
    def current(cls) -> RequestLimits | None:
        """Return those of the current request; ``None`` outside a request."""
        try:
            known: dict[str, Any] = request._get_current_object().__dict__  # type: ignore[attr-defined]
        except RuntimeError:
            return None
        state: RequestLimits | None = known.get(_STATE)
        if state is None:
            state = known[_STATE] = cls()
        return state

    def note(self, judged: Iterable[Judged]) -> None:
        """Note decisions for the response."""
        for limit, charge, decision in judged:
            if not limit.shadow:
                self.policies[limit] = policies_of(charge.rates, decision)
            if decision.receipt is not None:
                self.refundable.append((limit, decision))

    def covers(self, limit: Limit) -> bool:
        """Tell whether a call needs not be judged: of what the view may call, the first only."""
        route = self.route
        if route is None:
            return False
        if limit in route.covered_once and limit not in self._called:
            self._called.add(limit)
            return True
        return limit in route.covered

    def scope_of(self, declared: Any) -> str | None:
        """Return the scope of a declaration that is the view's own; ``None`` for others."""
        return None if self.route is None else self.route.scopes.get(declared)

    def hold(self, held: Held) -> None:
        """Free something when the request ends, or with its response if that is a stream."""
        if not self.held:
            self._failing = sys.exc_info()[1]  # of who called the app, if anything
        self.held.append(held)

    def end(self) -> None:
        """The request ends: nothing is sent any more but a response that is finished by now."""
        error = sys.exc_info()[1]
        failed = error is not None and error is not self._failing
        for held in self.held:
            held.end(failed=failed)


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
    limiter = runtime.limiter
    try:
        decisions = limiter.judge([charge for _, charge in charged])
    except RedisUnavailable as error:
        if not all(limit.shadow or goes_on(error, limit.on_outage) for limit, _ in charged):
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


def install(app: Flask, runtime: Runtime, limits: AppLimits) -> Routes:
    """Put the checks into one app, by overriding methods that Flask documents for that.

    :param app: the app.
    :param runtime: what belongs to it.
    :param limits: those of the app as a whole and of its blueprints.
    """
    routes = Routes(limits, lambda: runtime.health)
    guard = _Guard(app, runtime, routes)
    vars(app).update(
        preprocess_request=guard.preprocess_request,
        process_response=guard.process_response,
        do_teardown_request=guard.do_teardown_request,
    )
    return routes


class _Guard:
    """The methods of one app that see to its limits; arguments differ between versions of Flask."""

    def __init__(self, app: Flask, runtime: Runtime, routes: Routes) -> None:
        self._app = app
        self._runtime = runtime
        self._routes = routes
        self._surveyed = False
        self._surveying = ProcessLock()
        self._preprocess: Callable[..., Any] = app.preprocess_request
        self._process: Callable[..., Response] = app.process_response
        self._teardown: Callable[..., None] = app.do_teardown_request
        #: Nobody else overrides what is done with URL values and hooks.
        self._plain = getattr(app.preprocess_request, "__func__", None) is Flask.preprocess_request

    def preprocess_request(self, *args: Any) -> Any:
        """Check the limits ahead of all hooks, and those above the route right before the view.

        A key may need what a URL value preprocessor finds out: these come first, and one that
        refuses hides no limit. Where an app overrides this method itself, they come after.
        """
        if self._plain and any(self._app.url_value_preprocessors.values()):
            answer = self._preprocess_in_order()
        else:
            self._check_ahead()
            answer = self._preprocess(*args)
        if answer is None:
            state = RequestLimits.current()
            if state is not None and state.route is not None and state.route.late:
                _check_late(state.route)
        return answer

    def _preprocess_in_order(self) -> Any:
        """As Flask does it, with the limits between URL value preprocessors and hooks."""
        app, names = self._app, (None, *reversed(request.blueprints))
        try:
            for name in names:
                for preprocessor in app.url_value_preprocessors.get(name, ()):
                    preprocessor(request.endpoint, request.view_args)
        except Exception:
            with suppress(RedisUnavailable):  # the request is refused as it is
                self._check_ahead()
            raise
        self._check_ahead()
        for name in names:
            for hook in app.before_request_funcs.get(name, ()):
                answer = app.ensure_sync(hook)()
                if answer is not None:
                    return answer
        return None

    def _check_ahead(self) -> None:
        """Judge what applies to the current request.

        :raises HTTPException: if it is refused.
        """
        state = RequestLimits.current()
        if state is None or state.checked:
            return
        if not self._surveyed:
            self._survey()
        state.checked = True
        current_request: Request = request._get_current_object()  # type: ignore[attr-defined]
        warn_of_untrusted_proxy(current_request, self._runtime.warned)
        rule = current_request.url_rule
        if current_request.routing_exception is not None:
            rule = None
        route = self._routes.find(rule, current_request.method)
        ahead = route.ahead
        if route.static is not None and _is_file(route.static.static_folder, current_request):
            ahead = ahead[route.of_app :]
        if ahead:
            enforce(ahead)
        # Only now: who is refused may still call the view, from an error handler.
        state.route = route
        for check in route.checks:
            check()

    def _survey(self) -> None:
        """Before the first request: see to limits above hooks, and report weak limits."""
        with self._surveying:
            if not self._surveyed:
                _limit_hooks(self._app)
                report_weak_limits(self._app, self._routes)
                self._surveyed = True

    def process_response(self, *args: Any) -> Response:
        """Name the limits in the response, and give back what its outcome says."""
        response = self._process(*args)
        state = RequestLimits.current()
        if state is None:
            return response
        for held in state.held:
            held.keep_until_sent(response)
        if state.policies:
            policies = [policy for listed in state.policies.values() for policy in listed]
            rate_limit_headers(response, policies, self._runtime.settings.rate_limit_headers)
        for limit, decision in state.refundable:
            try:
                if limit.is_refunded(response):
                    self._runtime.limiter.refund(decision)
            except Exception:  # what is not given back only makes the limit stricter
                logger.exception("A charge could not be given back")
        return response

    def do_teardown_request(self, *args: Any) -> None:
        """Free what the request held, whatever became of it."""
        try:
            self._teardown(*args)
        finally:
            state = RequestLimits.current()
            if state is not None and state.held:
                state.end()


def _check_late(route: Route) -> None:
    """Check what stands above the route, and so is not called with the view."""
    limits = [one for one in route.late if isinstance(one, Limit)]
    if limits:
        enforce([(limit, limit.function_scope) for limit in limits])
    for one in route.late:
        if not isinstance(one, Limit):
            one.before_view()


def _limit_hooks(app: Flask) -> None:
    """Let the limits above ``before_request`` functions and error handlers apply to their calls."""
    for hooks in app.before_request_funcs.values():
        hooks[:] = map(_limited_hook, hooks)
    for codes in app.error_handler_spec.values():
        for handlers in codes.values():
            handlers.update({kind: _limited_hook(handler) for kind, handler in handlers.items()})


def _limited_hook(hook: Any) -> Any:
    """Return a hook that checks what stands above it at each call."""
    above = [one for one in stands_above(hook) if isinstance(one, Limit)]
    if not above:
        return hook
    for limit in above:
        logger.warning(STANDS_ABOVE, limit.function_scope)

    def check() -> None:
        enforce([(limit, limit.function_scope) for limit in above])

    if inspect.iscoroutinefunction(hook):

        @functools.wraps(hook)
        async def limited(*args: Any, **kwargs: Any) -> Any:
            check()
            return await hook(*args, **kwargs)
    else:

        @functools.wraps(hook)
        def limited(*args: Any, **kwargs: Any) -> Any:
            check()
            return hook(*args, **kwargs)

    return limited


def _is_file(folder: str | os.PathLike[str] | None, current_request: Request) -> bool:
    filename = (current_request.view_args or {}).get("filename")
    path = safe_join(os.fspath(folder), filename) if folder is not None and filename else None
    return path is not None and os.path.isfile(path)
