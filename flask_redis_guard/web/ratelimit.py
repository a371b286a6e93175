"""``@rate_limited`` and its kin: judged together, ahead of everything else in the request."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

from flask import Flask, Response, current_app, request

from flask_redis_guard.errors import RedisUnavailable
from flask_redis_guard.web.enforcement import Applied, RequestLimits, enforce
from flask_redis_guard.web.headers import rate_limit_headers
from flask_redis_guard.web.host import Host, current_host
from flask_redis_guard.web.limits import MARK, Limit, Rates, limits_of
from flask_redis_guard.web.subjects import warn_of_untrusted_proxy
from flask_redis_guard.web.survey import report_weak_limits

logger = logging.getLogger("flask_redis_guard")

F = TypeVar("F", bound=Callable[..., Any])


def rate_limited(
    rates: Rates,
    *,
    key: Any = None,
    cost: int | Callable[[], int] = 1,
    methods: Iterable[str] | None = None,
    exempt_when: Callable[[], bool] | None = None,
    scope: str | None = None,
    algorithm: str | None = None,
    on_outage: str = "deny",
    refund_when: Callable[[Response], bool] | None = None,
    defer: bool = False,
    shadow: bool = False,
) -> Callable[[F], F]:
    """Limit how often a view, or any function, may be called.

    A view is checked ahead of every ``before_request`` function, together with the limits of its
    app and blueprint; another function is checked when it is called.

    :param rates: such as ``"5/minute; 100/day"``, a :class:`~flask_redis_guard.Rate`, several, or
        a callable that returns them for each request.
    :param key: who is counted: ``"address"`` (default), ``"user"``, ``"session"``,
        ``"header:NAME"`` or a callable. Clients can change sessions and headers at will.
    :param cost: units a call takes from the limit, or a callable that returns them.
    :param methods: HTTP methods that count; all by default.
    :param exempt_when: a callable; when it returns true the limit does not apply.
    :param scope: limits with the same scope, rates and subject share their count.
    :param algorithm: ``"sliding-window"`` (default), ``"token-bucket"`` or ``"fixed-window"``.
    :param on_outage: without Redis: ``"deny"`` (503), ``"local"`` (count in this process, its
        share of the limit) or ``"allow"``.
    :param refund_when: called with the response; when it returns true the charge is given back.
    :param defer: check where the decorator stands, for keys that need the logged-in user.
    :param shadow: count and announce, but refuse nothing: for introducing a limit.
    :raises ConfigurationError: for an argument that cannot be honoured.
    """
    limit = Limit.declare(
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
        def check() -> None:
            state = RequestLimits.current()
            if state is None or limit not in state.ahead:
                name = f"{function.__module__}.{function.__qualname__}"
                enforce([(limit, f"function:{name}")])

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                check()
                return await function(*args, **kwargs)
        else:

            @functools.wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                check()
                return function(*args, **kwargs)

        setattr(wrapper, MARK, (limit, *getattr(function, MARK, ())))
        return wrapper  # type: ignore[return-value]

    return decorate


def check_ahead() -> None:
    """Judge what applies to the current request, ahead of every other ``before_request``."""
    host = current_host()
    report_weak_limits(host.app, host)
    warn_of_untrusted_proxy(host.warned)
    state = RequestLimits.current()
    if state is not None:
        state.checked = True
    preflight = request.method == "OPTIONS" and getattr(
        request.url_rule, "provide_automatic_options", False
    )
    if state is None or preflight:  # Flask answers a pre-flight by itself: no view is called
        return
    applied: list[Applied] = []
    if not _is_exempt(host):
        applied += [(limit, "app") for limit in host.app_limits]
    for name in request.blueprints:
        blueprint = current_app.blueprints.get(name)
        applied += [(limit, f"blueprint:{name}") for limit in host.blueprint_limits(blueprint)]
    if request.endpoint is not None and request.routing_exception is None:
        for limit in limits_of(current_app.view_functions.get(request.endpoint)):
            if not limit.defer:
                state.ahead.add(limit)
                applied.append((limit, f"endpoint:{request.endpoint}"))
    enforce(applied)


def _is_exempt(host: Host) -> bool:
    """Tell whether the request is for a static file or a health route: nothing worth limiting."""
    rule, name = request.url_rule, request.blueprint
    if rule is None:
        return False
    if name is None:
        static = f"{current_app.static_url_path}/<path:filename>"
        return current_app.has_static_folder and (request.endpoint, rule.rule) == ("static", static)
    blueprint = current_app.blueprints[name]
    if blueprint is host.health:
        return True
    static = f"{name}.static"
    return blueprint.has_static_folder and (request.endpoint, rule.arguments) == (
        static,
        {"filename"},
    )


def finish(response: Response) -> Response:
    """Name the limits in the response, and give back what its outcome says."""
    state = RequestLimits.current()
    if state is None or not state.judged:
        return response
    host = current_host()
    visible = [decision for limit, decision in state.judged if not limit.shadow]
    rate_limit_headers(response, visible, host.settings.rate_limit_headers)
    for limit, decision in state.judged:
        if decision.receipt is not None:
            try:
                if limit.is_refunded(response):
                    host.limiter.refund(decision)
            except Exception:  # what is not given back only makes the limit stricter
                logger.exception("A charge could not be given back")
    return response


def install(app: Flask) -> None:
    """Put the checks into one app.

    :param app: the app.
    """
    app.before_request_funcs.setdefault(None, []).insert(0, check_ahead)
    app.after_request(finish)
    preprocess_request: Callable[..., Any] = app.preprocess_request

    # A point to override, as Flask documents. URL value preprocessors run before any hook: one that
    # refuses would hide its requests from their limits, as an authentication hook must not.
    def preprocess(*args: Any) -> Any:
        try:
            return preprocess_request(*args)
        except Exception:
            state = RequestLimits.current()
            if state is not None and not state.checked:
                with suppress(RedisUnavailable):  # the request is refused as it is
                    check_ahead()
            raise

    vars(app)["preprocess_request"] = preprocess
