"""``@rate_limited``, and what is done in each request of an app ahead of everything else."""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from types import FunctionType
from typing import Any, TypeVar

from flask import Flask, Request, Response, request
from werkzeug.security import safe_join

from flask_redis_guard.core.process import ProcessLock
from flask_redis_guard.core.rates import Decision, Rate
from flask_redis_guard.errors import ConfigurationError, RateLimitExceeded, RedisUnavailable
from flask_redis_guard.limiting.compiled import Terms
from flask_redis_guard.limiting.plan import Charge
from flask_redis_guard.runtime import Runtime
from flask_redis_guard.web.limits.cli import STANDS_ABOVE, report_weak_limits
from flask_redis_guard.web.limits.declared import (
    Algorithm,
    AppLimits,
    Limit,
    OnOutage,
    Rates,
)
from flask_redis_guard.web.limits.enforce import (
    STATE,
    TOLD,
    Applied,
    Charged,
    RequestLimits,
    announce,
    enforce,
    fields_of,
    refuse,
    see_responses,
    without_redis,
)
from flask_redis_guard.web.limits.headers import (
    Fields,
    Header,
    Policy,
    policies_of,
    violated,
    with_fields,
)
from flask_redis_guard.web.limits.resolve import (
    Route,
    Routes,
    blueprint_names,
    check_function,
    function_scope,
    mark,
    stands_above,
)
from flask_redis_guard.web.limits.subjects import Key, reader_of, warn_of_untrusted_proxy
from flask_redis_guard.web.refusals import EarlyReplies

logger = logging.getLogger("flask_redis_guard")

F = TypeVar("F", bound=Callable[..., Any])


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
    try:
        state = request._get_current_object().__dict__.get(STATE)  # type: ignore[attr-defined]
    except RuntimeError:  # outside a request
        state = None
    if (
        state is None
        or state.route is None
        or (limit not in state.route.covered and not state.covers_once(limit))
    ):
        enforce([(limit, limit.function_scope)])


def install(app: Flask, runtime: Runtime, limits: AppLimits) -> Routes:
    """Put the checks into one app, by overriding methods that Flask documents for that.

    :param app: the app.
    :param runtime: what belongs to it.
    :param limits: those of the app as a whole and of its blueprints.
    """
    routes = Routes(limits, lambda: runtime.health, lambda route: Prepared.of(runtime, route, app))
    guard = _Guard(app, runtime, routes)
    vars(app).update(preprocess_request=guard.preprocess_request, wsgi_app=guard.wsgi_app)
    return routes


class _Guard:
    """The methods of one app that see to its limits; arguments differ between versions of Flask."""

    def __init__(self, app: Flask, runtime: Runtime, routes: Routes) -> None:
        self._app = app
        self._runtime = runtime
        self._routes = routes
        self._kept = routes.kept
        self._declared = routes.limits.declared
        self._surveyed = False
        self._surveying = ProcessLock()
        self._preprocess: Callable[..., Any] = app.preprocess_request
        self._wsgi_app: Any = app.wsgi_app
        #: Nobody else overrides what is done with URL values and hooks.
        self._plain = getattr(app.preprocess_request, "__func__", None) is Flask.preprocess_request

    def wsgi_app(self, environ: dict[str, Any], start_response: Any) -> Any:
        """Name the limits of a request in the headers of its response, whatever made that."""
        judged: list[RequestLimits] = []
        environ[TOLD] = judged

        def start(status: str, headers: list[Header], *more: Any) -> Any:
            if judged:
                fields = self._fields(judged[0])
                if fields:
                    headers = with_fields(status, headers, fields)
            return start_response(status, headers, *more)

        return self._wsgi_app(environ, start)

    def _fields(self, state: RequestLimits) -> list[Header]:
        if state.ahead is None:
            if not state.listed:
                return []
        elif state.listed is None:
            prepared = state.ahead[0].fields(state.ahead[1])
            if prepared is not None:
                return prepared
        return fields_of(state, self._runtime)

    def preprocess_request(self, *args: Any) -> Any:
        """Check the limits ahead of all hooks, and those above the route right before the view.

        A key may need what a URL value preprocessor finds out: these come first, and one that
        refuses hides no limit. Where an app overrides this method itself, they come after.
        """
        asked: Request = request._get_current_object()  # type: ignore[attr-defined]
        preprocessors = self._app.url_value_preprocessors
        if preprocessors and self._plain and any(preprocessors.values()):
            answer = self._preprocess_in_order(asked)
        else:
            answer = self._check_ahead(asked)
            if answer is None:
                answer = self._preprocess(*args)
        if answer is None and self._routes.any_late:
            state = RequestLimits.current()
            if state is not None and state.route is not None and state.route.late:
                _check_late(state.route)
        return answer

    def _preprocess_in_order(self, asked: Request) -> Any:
        """As Flask does it, with the limits between URL value preprocessors and hooks."""
        app, names = self._app, (None, *reversed(asked.blueprints))
        try:
            for name in names:
                for preprocessor in app.url_value_preprocessors.get(name, ()):
                    preprocessor(asked.endpoint, asked.view_args)
        except Exception:
            with suppress(RedisUnavailable):  # the request is refused as it is
                answer = self._check_ahead(asked)
                if answer is not None:
                    return answer
            raise
        answer = self._check_ahead(asked)
        if answer is not None:
            return answer
        for name in names:
            for hook in app.before_request_funcs.get(name, ()):
                answer = app.ensure_sync(hook)()
                if answer is not None:
                    return answer
        return None

    def _check_ahead(self, asked: Request) -> Response | None:
        """Judge what applies to a request.

        :returns: a refusal, where nothing but the request is to be refused by it.
        :raises HTTPException: any other refusal.
        """
        state = asked.__dict__.get(STATE)
        if state is None:
            state = asked.__dict__[STATE] = RequestLimits()
        elif state.checked:
            return None
        if not self._surveyed:
            self._survey()
        self._begin(asked, state)
        route = self._route_of(asked)
        prepared: Prepared | None = route.prepared
        if prepared is not None and route.static is None:
            refusal = prepared.check(asked, state)
            if refusal is not None:
                return refusal
        elif route.ahead:
            self._enforce(asked, route)
        # Only now: who is refused may still call the view, from an error handler.
        state.route = route
        for check in route.checks:
            check()
        return None

    def _begin(self, asked: Request, state: RequestLimits) -> None:
        state.checked = True
        runtime, environ = self._runtime, asked.environ
        if TOLD in environ:
            environ[TOLD][:] = (state,)
        else:  # a request that does not come through WSGI
            see_responses(self._app)
        if runtime.bus.begins:  # the background check does not run yet in this process
            runtime.monitor.start()
        if "HTTP_X_FORWARDED_FOR" in environ or "HTTP_FORWARDED" in environ:
            warn_of_untrusted_proxy(asked, runtime.warned)

    def _route_of(self, asked: Request) -> Route:
        rule = asked.url_rule if asked.routing_exception is None else None
        key = (id(rule), "" if rule is None else asked.method)
        route = self._kept.get(key)
        if route is None or not (
            route.rule is rule
            and route.version == self._declared.version
            and (rule is None or self._app.view_functions.get(rule.endpoint) is route.view)
        ):
            route = self._routes.find(rule, key)
        return route

    def _enforce(self, asked: Request, route: Route) -> None:
        """Judge limits that differ from request to request, or those of a static file."""
        if route.static is not None and _is_file(route.static.static_folder, asked):
            enforce(route.ahead[route.of_app :])
        else:
            enforce(route.ahead)

    def _survey(self) -> None:
        """Before the first request: see to limits above hooks, and report weak limits."""
        with self._surveying:
            if not self._surveyed:
                _limit_hooks(self._app)
                report_weak_limits(self._app, self._routes)
                self._surveyed = True


class Prepared:
    """The limits that are judged ahead of a view, where no request changes them.

    :param runtime: what belongs to the app.
    :param applied: the limits with their scopes: their rates and costs are constant, and nobody is
        exempt from them.
    :param early: makes refusals that need nothing of the app but its response class.
    """

    def __init__(self, runtime: Runtime, applied: Sequence[Applied], early: EarlyReplies) -> None:
        self._runtime = runtime
        self.limits = [limit for limit, _ in applied]
        self._rates: list[tuple[Rate, ...]] = [limit.rates for limit in self.limits]  # type: ignore[misc]
        self._scopes = [limit.scope_in(scope) for limit, scope in applied]
        self.refundable = any(limit.refund_when is not None for limit in self.limits)
        if self.refundable:
            see_responses(runtime.app)
        self._early = early
        keys = [limit.key for limit in self.limits]
        readers = [reader_of(key, runtime.settings) for key in keys]
        self._readers = readers
        # One key of several limits is asked once.
        self._one_reader = readers[0] if all(key is keys[0] for key in keys) else None
        self._number = len(self.limits)
        costs = [limit.cost for limit in self.limits]
        self._costs: Any = None if set(costs) == {1} else costs
        self._terms = [
            Terms(rates, scope, limit.refund_when is not None, limit.shadow)
            for limit, rates, scope in zip(self.limits, self._rates, self._scopes, strict=True)
        ]
        self._judge = runtime.limiter.compile(self._terms).judge
        #: What responses tell, where that is prepared: if all limits can refuse.
        self._fields: Fields | None = None
        style = runtime.settings.rate_limit_headers
        if style == "draft" and not any(limit.shadow for limit in self.limits):
            self._fields = Fields(tuple((rate, False) for rates in self._rates for rate in rates))

    @classmethod
    def of(cls, runtime: Runtime, route: Route, app: Flask) -> Prepared | None:
        """Return the limits of a route if they can be prepared."""
        for limit, _ in route.ahead:
            if callable(limit.rates) or callable(limit.cost) or limit.exempt_when is not None:
                return None
        names = [] if route.rule is None else blueprint_names(route.rule.endpoint)
        return cls(runtime, route.ahead, EarlyReplies(app, runtime.bus, names))

    def check(self, asked: Request, state: RequestLimits) -> Response | None:
        """Judge the limits of a request; as :func:`enforce`.

        :returns: a refusal that nobody else wants to know of.
        """
        try:
            if self._one_reader is not None:
                subjects = [self._one_reader()] * self._number
            else:
                subjects = [read() for read in self._readers]
        except Exception:  # noqa: BLE001 - the limits that can be worked out count all the same
            enforce(list(zip(self.limits, self._scopes, strict=True)))
            return None
        try:
            decisions = self._judge(subjects, self._costs)
        except RedisUnavailable as error:
            return self._without_redis(asked, state, subjects, error)
        for decision in decisions:
            if not decision.allowed:
                return self._refuse(asked, state, decisions)
        state.ahead = self, decisions
        if self.refundable:
            pairs = zip(self.limits, decisions, strict=True)
            state.refundable = [pair for pair in pairs if pair[1].receipt is not None]
        return None

    def policies(self, decisions: Sequence[Decision]) -> dict[object, list[Policy]]:
        """Return what a response tells of each limit."""
        judged = zip(self.limits, self._rates, decisions, strict=True)
        return {
            limit: policies_of(rates, decision)
            for limit, rates, decision in judged
            if not limit.shadow
        }

    def fields(self, decisions: Sequence[Decision]) -> list[Header] | None:
        """Return what a response tells of all limits, if that is prepared."""
        return None if self._fields is None else self._fields.of(decisions)

    def _charged(self, subjects: Sequence[str]) -> list[Charged]:
        costs = self._costs or [1] * len(self.limits)
        parts = zip(self.limits, self._rates, subjects, costs, self._scopes, strict=True)
        return [
            (
                limit,
                Charge(rates, subject, cost, scope, limit.refund_when is not None, limit.shadow),
            )
            for limit, rates, subject, cost, scope in parts
        ]

    def _without_redis(
        self, asked: Request, state: RequestLimits, subjects: Sequence[str], error: RedisUnavailable
    ) -> Response | None:
        try:
            judged = without_redis(self._runtime, self._charged(subjects), error)
        except RedisUnavailable:
            answer = self._early.unavailable(asked, error)
            if answer is None:
                raise
            return answer
        state.note(judged)
        refuse(self._runtime, judged, asked.endpoint)
        return None

    def _refuse(
        self, asked: Request, state: RequestLimits, decisions: list[Decision]
    ) -> Response | None:
        worst: Decision | None = None
        for limit, scope, decision in zip(self.limits, self._scopes, decisions, strict=True):
            if not decision.allowed:
                announce(self._runtime, decision, asked.endpoint, scope, shadow=limit.shadow)
                if not limit.shadow and (worst is None or decision.retry_after > worst.retry_after):
                    worst = decision
        if worst is None:
            state.ahead = self, decisions
            return None
        state.ahead = self, decisions
        names = None if self._fields is None else self._fields.violated(decisions)
        answer = None if names is None else self._early.exceeded(asked, worst, names)
        if answer is None:
            policies = [policy for listed in state.policies.values() for policy in listed]
            raise RateLimitExceeded(worst, violated(policies))
        return answer


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
