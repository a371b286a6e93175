"""``@rate_limited`` and its kin: judged together, ahead of everything else in the request."""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from flask import Flask, Response, current_app, request
from werkzeug.security import safe_join

from flask_redis_guard.errors import RedisUnavailable
from flask_redis_guard.runtime import Runtime, current
from flask_redis_guard.web.limits.declared import AppLimits, Limit, Rates
from flask_redis_guard.web.limits.enforce import Applied, RequestLimits, enforce
from flask_redis_guard.web.limits.headers import rate_limit_headers
from flask_redis_guard.web.limits.resolve import (
    MARK,
    check_function,
    function_scope,
    handler_of,
    marks_of,
    note_above,
    view_of,
)
from flask_redis_guard.web.limits.subjects import warn_of_untrusted_proxy
from flask_redis_guard.web.limits.survey import report_weak_limits

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
        limit = replace(declared, function_scope=function_scope(function))

        def check() -> None:
            state = RequestLimits.current()
            if state is None or not state.covers(limit):
                enforce([(limit, limit.function_scope)])

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
        note_above(function, decorate)
        return wrapper  # type: ignore[return-value]

    return decorate


def check_ahead() -> None:
    """Judge what applies to the current request, ahead of every other ``before_request``."""
    runtime = current()
    report_weak_limits(runtime.app, runtime)
    warn_of_untrusted_proxy(runtime.warned)
    state = RequestLimits.current()
    if state is not None:
        state.checked = True
    preflight = request.method == "OPTIONS" and getattr(
        request.url_rule, "provide_automatic_options", False
    )
    if state is None or preflight:  # Flask answers a pre-flight by itself: no view is called
        return
    applied: list[Applied] = []
    ahead: dict[Limit, bool] = {}
    if not _is_exempt(runtime):
        applied += [(limit, "app") for limit in runtime.part(AppLimits).of_app()]
    for name in request.blueprints:
        blueprint = current_app.blueprints.get(name)
        applied += [
            (limit, f"blueprint:{name}")
            for limit in runtime.part(AppLimits).of_blueprint(blueprint)
        ]
    if request.endpoint is not None and request.routing_exception is None:
        ahead = limits_ahead(current_app, request.endpoint, request.method)
        applied += [
            (limit, f"endpoint:{request.endpoint}" if own else limit.function_scope)
            for limit, own in ahead.items()
        ]
    enforce(applied)
    state.cover(ahead)


def limits_ahead(app: Flask, endpoint: str, method: str) -> dict[Limit, bool]:
    """Return the limits that are judged ahead of a view.

    :returns: true for those that are the view's for certain; see
        :func:`~flask_redis_guard.web.limits.resolve.marks_of`.
    """
    view = view_of(app, endpoint)
    handler = handler_of(view, method)
    found = {} if handler is None else dict.fromkeys(marks_of(handler), False)
    found.update(marks_of(view))
    return {
        limit: own or not limit.function_scope for limit, own in found.items() if not limit.defer
    }


def _is_exempt(runtime: Runtime) -> bool:
    """Tell whether the request is for a static file or a health route: nothing worth limiting.

    A file that is not there is worth it: with ``static_url_path=""`` every URL might be one.
    """
    rule, name = request.url_rule, request.blueprint
    if rule is None:
        return False
    if name is None:
        static = f"{current_app.static_url_path}/<path:filename>"
        is_static = (request.endpoint, rule.rule) == ("static", static)
        return is_static and _is_file(current_app.static_folder)
    blueprint = current_app.blueprints[name]
    if blueprint is runtime.health:
        return True
    is_static = (request.endpoint, rule.arguments) == (f"{name}.static", {"filename"})
    return is_static and _is_file(blueprint.static_folder)


def _is_file(folder: str | None) -> bool:
    filename = (request.view_args or {}).get("filename")
    path = safe_join(folder, filename) if folder is not None and filename else None
    return path is not None and os.path.isfile(path)


def finish(response: Response) -> Response:
    """Name the limits in the response, and give back what its outcome says."""
    state = RequestLimits.current()
    if state is None or not state.decisions:
        return response
    runtime = current()
    visible = [decision for limit, decision in state.decisions.items() if not limit.shadow]
    rate_limit_headers(response, visible, runtime.settings.rate_limit_headers)
    for limit, decision in state.refundable:
        try:
            if limit.is_refunded(response):
                runtime.limiter.refund(decision)
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
            answer = preprocess_request(*args)
        except Exception:
            if unchecked():
                with suppress(RedisUnavailable):  # the request is refused as it is
                    check_ahead()
            raise
        if unchecked():  # a hook was put ahead of the check, or the hooks were replaced
            check_ahead()
        return answer

    def unchecked() -> bool:
        state = RequestLimits.current()
        return state is not None and not state.checked

    vars(app)["preprocess_request"] = preprocess
